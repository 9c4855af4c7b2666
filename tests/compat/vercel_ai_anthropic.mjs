// Vercel's AI SDK with @ai-sdk/anthropic.

import assert from 'node:assert/strict';
import { createAnthropic } from '@ai-sdk/anthropic';
import { generateText, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';
import { run, settings } from './report.mjs';

const { scripted_url: url, api_key: apiKey } = settings;
const anthropic = createAnthropic({ baseURL: `${url}/v1`, apiKey });
const model = anthropic(settings.model);
const thinking = { anthropic: { thinking: { type: 'enabled', budgetTokens: 1024 } } };
const image = 'iVBORw0KGgo=';

const tools = {
  screenshot: tool({
    description: 'A screenshot.',
    inputSchema: z.object({ region: z.string() }),
    execute: async () => ({ data: image }),
    toModelOutput: () => ({
      type: 'content',
      value: [{ type: 'media', data: image, mediaType: 'image/png' }],
    }),
  }),
  read_file: tool({
    description: 'A file.',
    inputSchema: z.object({ path: z.string() }),
    execute: async () => 'a file',
  }),
};

const checks = {
  async text() {
    const { text, finishReason, usage } = await generateText({ model, prompt: 'hello', maxRetries: 0 });
    assert.equal(text, 'Hello, world.');
    assert.equal(finishReason, 'stop');
    assert.deepEqual([usage.inputTokens, usage.outputTokens], [12, 5]);
  },

  async stream() {
    const result = streamText({ model, prompt: 'hello', maxRetries: 0 });
    let text = '';
    for await (const part of result.textStream) text += part;
    assert.equal(text, 'Hello, world.');
  },

  async reasoning() {
    const result = streamText({ model, prompt: 'hello', providerOptions: thinking, maxRetries: 0 });
    let text = '';
    for await (const part of result.textStream) text += part;
    assert.equal(text, 'Hello, world.');
    assert.equal(await result.reasoningText, 'A greeting.');
    assert.deepEqual([(await result.usage).inputTokens, (await result.usage).outputTokens], [12, 5]);
  },

  async tools() {
    const result = streamText({
      model,
      tools,
      prompt: 'Take a screenshot',
      stopWhen: stepCountIs(3),
      maxRetries: 0,
    });
    assert.equal(await result.text, 'The page has 1 image; the file says a file');
    assert.equal((await result.steps).length, 2);
  },

  async broken_stream() {
    const errors = [];
    const result = streamText({
      model,
      prompt: 'broken',
      maxRetries: 0,
      onError: ({ error }) => errors.push(error),
    });
    await result.consumeStream();
    assert.equal(errors.length, 1);
    assert.notEqual(await result.finishReason.catch(() => 'error'), 'stop');
  },

  async error() {
    const limited = generateText({ model, prompt: 'limited', maxRetries: 0 });
    await assert.rejects(limited, (error) => error.statusCode === 429 && error.data.error.type === 'rate_limit_error');
  },
};

await run(checks);
