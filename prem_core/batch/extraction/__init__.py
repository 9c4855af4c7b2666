"""Extracts values of a given form from documents."""
