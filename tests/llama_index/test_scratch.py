import pytest
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20", "ignore::pydantic.warnings.PydanticDeprecatedSince211")
import asyncio
from llama_index.core.llms import ChatMessage
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import PydanticProgramMode
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return f"It is sunny in {location}."
def get_time(city: str) -> str:
    """Get the local time in a city."""
    return f"It is noon in {city}."
class Patient(BaseModel):
    """A patient."""
    name: str
    age: int
async def test_it(llm):
    m = llm()
    print(repr(m)); print(m.to_dict())
    r = m.chat([ChatMessage("Hello")]); print(repr(r))
    for r in m.stream_chat([ChatMessage("Context: The clinic opens at eight. Question: When does the clinic open?")]): pass
    print(repr(r))
    print(repr(m.complete("Hello")))
    agent = FunctionAgent(tools=[get_weather, get_time], llm=m)
    h = agent.run("Get the weather in Paris and the time in Berlin.")
    async for e in h.stream_events(): print(type(e).__name__, str(e)[:150])
    print(await h)
    for mode in (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION):
        m = llm(pydantic_program_mode=mode)
        p = PromptTemplate("Name: Anna Berg. Age: 63. She may go {where}.")
        print(m.structured_predict(Patient, p, where="home"))
        print(await m.astructured_predict(Patient, p, where="home"))
        print(list(m.stream_structured_predict(Patient, p, where="home")))
        print([x async for x in await m.astream_structured_predict(Patient, p, where="home")])
        print(repr(m.as_structured_llm(Patient).complete("Name: Anna Berg. Age: 63. She may go home")))
    assert 0
