// Vercel's AI SDK with @ai-sdk/openai, whose models call the Responses API.

import { createOpenAI } from "@ai-sdk/openai";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { check, run, settings, thrownBy } from "./report.mjs";

const provider = (url) => createOpenAI({ baseURL: url, apiKey: settings.api_key });
const model = provider(settings.base_url)(settings.model);
const broken = provider(settings.broken_url)(settings.model);
const stored = provider(settings.stored_url)(settings.model);

const tools = {
  get_weather: tool({
    description: "Get the weather at a location.",
    inputSchema: z.object({ location: z.string() }),
    execute: async () => settings.results.get_weather,
  }),
  get_time: tool({
    description: "Get the local time in a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async () => settings.results.get_time,
  }),
};
const results = Object.values(settings.results);
const ask = { maxRetries: 0 };

async function checkLoop(options) {
  const loop = { ...ask, tools, prompt: settings.errands, stopWhen: stepCountIs(3), ...options };
  const { text } = await generateText(loop);
  check(results.every((result) => text.includes(result)), text);
  const streamed = await streamText(loop).text;
  check(results.every((result) => streamed.includes(result)), streamed);
}

await run({
  text: async () => {
    const { text, usage, finishReason } = await generateText({ ...ask, model, system: "Be brief.", prompt: settings.question });
    check(text.includes(settings.answer), text);
    check(usage.totalTokens > 0 && finishReason === "stop", finishReason);
  },
  stream: async () => {
    const texts = [];
    for await (const text of streamText({ ...ask, model, prompt: settings.question }).textStream) texts.push(text);
    check(texts.join("").includes(settings.answer) && texts.length > 1, texts.join("|"));
  },
  tools: () => checkLoop({ model }),
  structured: async () => {
    const schema = z.object({ invoice_number: z.string(), total: z.number() });
    const { output } = await generateText({ ...ask, model, output: Output.object({ schema }), prompt: settings.invoice });
    check(output.invoice_number === "INV-7" && output.total === 12.5, JSON.stringify(output));
  },
  reasoning: async () => {
    const { reasoningText } = await generateText({ ...ask, model, prompt: settings.question });
    check(reasoningText, "no reasoning");
    await checkLoop({ model, providerOptions: { openai: { store: false } } });
  },
  error: async () => {
    const errors = [];
    const { fullStream } = streamText({ ...ask, model: broken, prompt: settings.question, onError: () => {} });
    for await (const part of fullStream) if (part.type === "error") errors.push(part.error);
    check(errors.length > 0, "no error in the stream");
    check(errors.some((error) => JSON.stringify(error).includes("truncated")), JSON.stringify(errors));
    const error = await thrownBy(() => generateText({ ...ask, model: broken, prompt: settings.question }));
    check(error.message.includes("truncated"), error.message);
  },
  stored: async () => {
    await checkLoop({ model: stored });
    // A conversation with its earlier answers, to which the SDK refers by their ids.
    const messages = [{ role: "user", content: settings.errands }];
    const first = await generateText({ ...ask, model: stored, tools, messages, stopWhen: stepCountIs(3) });
    messages.push(...first.response.messages, { role: "user", content: settings.question });
    const { text } = await generateText({ ...ask, model: stored, messages });
    check(text.includes(settings.answer), text);
  },
});
