"""The APIs that the proxy and the transports serve: OpenAI's and Anthropic's, each translated to Prem's chat."""
