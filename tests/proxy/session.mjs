// The session of openai_session.py with the official npm client. Prints its report as JSON.
//
// Environment: BASE_URL, LIMITED_URL, SLOW_URL and the API key of each; SESSION, the questions and tools as JSON.

import fs from "node:fs";

import OpenAI, { AuthenticationError, RateLimitError } from "openai";

const { env } = process;
const { model, whisper, recording, question, errands, invoice, tools, results, schema } = JSON.parse(env.SESSION);
const official = (name) => new OpenAI({ baseURL: env[`${name}_URL`], apiKey: env[`${name}_KEY`], maxRetries: 0 });
const messagesOf = (content) => [{ role: "user", content }];
const report = {};

const client = official("BASE");
const create = (params) => client.chat.completions.create({ model, ...params });

const whole = await create({ messages: messagesOf(question) });
report.chat = [whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage.total_tokens > 0];

const chunks = [];
for await (const chunk of await create({
  messages: messagesOf(question),
  stream: true,
  stream_options: { include_usage: true },
})) {
  chunks.push(chunk);
}
const deltas = chunks.flatMap((chunk) => chunk.choices.map((choice) => choice.delta));
report.stream = [
  deltas.map((delta) => delta.content ?? "").join(""),
  deltas.some((delta) => delta.reasoning_content),
  chunks.at(-1).usage.total_tokens > 0,
];

// The client's runner merges the chunks of tool calls.
const runner = client.chat.completions.stream({ model, messages: messagesOf(errands), tools, parallel_tool_calls: true });
const calls = (await runner.finalMessage()).tool_calls;
report.tools = calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]);
const answer = await create({
  messages: [
    ...messagesOf(errands),
    { role: "assistant", content: null, tool_calls: calls },
    ...calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: results[call.function.name] })),
  ],
  tools,
});
report.answer = answer.choices[0].message.content;

const invoiced = await create({
  messages: messagesOf(invoice),
  response_format: { type: "json_schema", json_schema: { name: "invoice", strict: true, schema } },
});
report.json_schema = JSON.parse(invoiced.choices[0].message.content);

const transcribe = (params) =>
  client.audio.transcriptions.create({ model: whisper, file: fs.createReadStream(recording), ...params });
const transcription = await transcribe({
  response_format: "verbose_json",
  timestamp_granularities: ["segment", "word"],
});
report.transcription = [transcription.text, transcription.segments.length, transcription.words.length > 0];
report.text = await transcribe({ response_format: "text" });

const listed = await client.models.list();
const shown = await client.models.retrieve(model);
report.models = [listed.data.map((each) => each.id).includes(model), shown.id];

try {
  const wrongKey = client.withOptions({ apiKey: "sk_test_wrong" });
  await wrongKey.chat.completions.create({ model, messages: messagesOf(question) });
} catch (error) {
  if (!(error instanceof AuthenticationError)) throw error;
  report["wrong key"] = [error.status, error.code, error.requestID.slice(0, 8)];
}

try {
  for (let count = 0; count < 8; count++) {
    await official("LIMITED").chat.completions.create({ model, messages: messagesOf(question) });
  }
} catch (error) {
  if (!(error instanceof RateLimitError)) throw error;
  report.limit = [error.status, error.code, Number(error.headers.get("retry-after")) >= 1];
}

const stream = await official("SLOW").chat.completions.create({
  model: "scripted",
  messages: messagesOf("Hello?"),
  stream: true,
});
for await (const chunk of stream) {
  report["disconnect"] = chunk.choices[0].delta.content;
  break;
}
stream.controller.abort();

console.log(JSON.stringify(report));
