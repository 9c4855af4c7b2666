"""`extractor`: a runnable that extracts a value from a document."""

from __future__ import annotations

import os
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from langchain_prem._errors import core_errors
from langchain_prem.chat_models import ChatPremEncrypted
from prem_core import LengthFinishReasonError, PremError
from prem_core.batch import Extraction, Reply, aread_parts, read_parts, text_document

#: What the runnable takes: the path of a text, a PDF, an image or a recording; or text.
DocumentLike = str | os.PathLike[str] | Document


def extractor(
    llm: ChatPremEncrypted, schema: Any, *, instructions: str | None = None
) -> Runnable[DocumentLike, Any]:
    """A runnable that extracts a value of `schema` from a document.

    Its input is the path of a text, a PDF, an image or a recording, or a LangChain `Document` with text. A model that
    refuses ``json_schema`` is asked for any JSON object; the value is validated in both cases. A truncated answer is
    requested once more, with a larger token limit.

    Args:
        llm: The model. Its client transcribes recordings, too.
        schema: A Pydantic class, or a JSON Schema of an object.
        instructions: What to extract, in addition to the schema.

    Returns:
        The runnable. Its output is an instance of the Pydantic class, or an object.

    Raises:
        ConfigurationError: `schema` cannot be used.
        ExtractionError: Raised when the runnable runs: the answer does not have the form.
        LengthFinishReasonError: Raised when the runnable runs: both answers were truncated.
    """
    extraction = Extraction(schema, instructions=instructions)
    limits = {"max_tokens": llm.max_tokens, "max_completion_tokens": llm.max_completion_tokens}
    params = {"model": llm.model, **{name: value for name, value in limits.items() if value}}

    def extract(document: DocumentLike, config: RunnableConfig) -> Any:
        with core_errors():
            steps = extraction.steps(read_parts(llm._client(), _source(document)), params)
            while steps.request is not None:
                messages, request = _arguments(steps.request)
                try:
                    answer = llm.invoke(messages, config, **request)
                except LengthFinishReasonError:
                    steps.answer(Reply("", "length"))
                except PremError as error:
                    steps.fail(error)
                else:
                    steps.answer(_reply(answer))
            return steps.value

    async def aextract(document: DocumentLike, config: RunnableConfig) -> Any:
        with core_errors():
            steps = extraction.steps(await aread_parts(llm._async_client(), _source(document)), params)
            while steps.request is not None:
                messages, request = _arguments(steps.request)
                try:
                    answer = await llm.ainvoke(messages, config, **request)
                except LengthFinishReasonError:
                    steps.answer(Reply("", "length"))
                except PremError as error:
                    steps.fail(error)
                else:
                    steps.answer(_reply(answer))
            return steps.value

    return RunnableLambda(extract, aextract, name="PremExtractor")


def _source(document: DocumentLike) -> Any:
    return text_document(document.page_content) if isinstance(document, Document) else document


def _arguments(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return request["messages"], {name: value for name, value in request.items() if name != "messages"}


def _reply(answer: AIMessage) -> Reply:
    return Reply(
        answer.text,
        answer.response_metadata.get("finish_reason"),
        refused=bool(answer.additional_kwargs.get("refusal")),
        completion_tokens=answer.usage_metadata["output_tokens"] if answer.usage_metadata else None,
    )
