// The official npm client with the Responses API.

import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { check, run, settings, thrownBy } from "./report.mjs";

const clientOf = (url) => new OpenAI({ baseURL: url, apiKey: settings.api_key, maxRetries: 0 });
const { responses } = clientOf(settings.base_url);
const broken = clientOf(settings.broken_url).responses;
const stored = clientOf(settings.stored_url).responses;
const { model } = settings;
const asked = { model, input: settings.question };
const tools = settings.tools;

async function consume(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

async function checkLoop(client, next) {
  const first = await client.create({ model, input: settings.errands, tools });
  const calls = first.output.filter((item) => item.type === "function_call");
  const outputs = calls.map((call) => ({
    type: "function_call_output",
    call_id: call.call_id,
    output: settings.results[call.name],
  }));
  const { output_text } = await client.create({ model, tools, ...next(first, outputs) });
  for (const result of Object.values(settings.results)) check(output_text.includes(result), output_text);
}

await run({
  text: async () => {
    const answer = await responses.create({ ...asked, instructions: "Be brief." });
    check(answer.output_text.includes(settings.answer) && answer.usage.total_tokens > 0, answer.output_text);
  },
  stream: async () => {
    const events = await consume(await responses.create({ ...asked, stream: true }));
    const texts = events.filter((event) => event.type === "response.output_text.delta");
    check(texts.map((event) => event.delta).join("").includes(settings.answer), "no text");
    const { output } = await responses.stream(asked).finalResponse();
    check(output.at(-1).content[0].text.includes(settings.answer), JSON.stringify(output));
  },
  tools: () =>
    checkLoop(responses, (first, outputs) => ({
      input: [{ role: "user", content: settings.errands }, ...first.output, ...outputs],
    })),
  structured: async () => {
    const schema = z.object({ invoice_number: z.string(), total: z.number() });
    const format = zodTextFormat(schema, "invoice");
    const answer = await responses.parse({ model, input: settings.invoice, text: { format } });
    check(answer.output_parsed.total === 12.5, JSON.stringify(answer.output_parsed));
  },
  reasoning: async () => {
    const answer = await responses.create({ ...asked, reasoning: { effort: "low", summary: "auto" } });
    check(answer.output[0].type === "reasoning", answer.output[0].type);
  },
  error: async () => {
    const thrown = await thrownBy(async () => consume(await broken.create({ ...asked, stream: true })));
    check(thrown.message.includes("truncated"), thrown.message);
    const error = await thrownBy(() => broken.create(asked));
    check(error.status === 502 && error.message.includes("truncated"), error.message);
  },
  stored: async () => {
    await checkLoop(stored, (first, outputs) => ({ previous_response_id: first.id, input: outputs }));
    const answer = await stored.create(asked);
    check((await stored.retrieve(answer.id)).id === answer.id, "not retrieved");
    await stored.delete(answer.id);
    check((await thrownBy(() => stored.retrieve(answer.id))).status === 404, "not deleted");
  },
});
