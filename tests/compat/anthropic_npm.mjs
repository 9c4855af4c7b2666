// Anthropic's npm client.

import assert from 'node:assert/strict';
import Anthropic from '@anthropic-ai/sdk';
import { run, settings } from './report.mjs';

const { scripted_url: url, api_key: key, model } = settings;
const client = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0, timeout: 30_000 });
const ask = (content, more = {}) => ({ model, max_tokens: 100, messages: [{ role: 'user', content }], ...more });
const tools = ['screenshot', 'read_file', 'look'].map((name) => ({
  name,
  description: name,
  input_schema: { type: 'object', properties: {} },
}));
const image = { type: 'image', source: { type: 'base64', media_type: 'image/png', data: 'iVBORw0KGgo=' } };

const checks = {
  async text() {
    const message = await client.messages.create(ask('hello'));
    assert.equal(message.content[0].text, 'Hello, world.');
    assert.equal(message.stop_reason, 'end_turn');
    assert.deepEqual([message.usage.input_tokens, message.usage.output_tokens], [12, 5]);
  },

  async stream() {
    let text = '';
    const stream = client.messages.stream(ask('hello')).on('text', (delta) => (text += delta));
    const message = await stream.finalMessage();
    assert.equal(text, 'Hello, world.');
    assert.equal(message.stop_reason, 'end_turn');
    assert.deepEqual([message.usage.input_tokens, message.usage.output_tokens], [12, 5]);
  },

  async reasoning() {
    const thinking = { type: 'enabled', budget_tokens: 1024 };
    const message = await client.messages.stream(ask('hello', { thinking })).finalMessage();
    assert.deepEqual(message.content.map((block) => block.type), ['thinking', 'text']);
    assert.equal(message.content[0].thinking, 'A greeting.');
  },

  async tools() {
    const messages = [{ role: 'user', content: 'Take a screenshot' }];
    let partial = '';
    const stream = client.messages.stream({ model, max_tokens: 100, tools, messages });
    stream.on('inputJson', (delta) => (partial += delta));
    const message = await stream.finalMessage();
    assert.equal(partial, '{"region": "left"}{"path": "a.txt"}');
    assert.equal(message.stop_reason, 'tool_use');
    const calls = message.content.filter((block) => block.type === 'tool_use');
    assert.deepEqual(calls.map((call) => call.input), [{ region: 'left' }, { path: 'a.txt' }]);
    const results = [
      { type: 'tool_result', tool_use_id: calls[0].id, content: [{ type: 'text', text: 'ok' }, image] },
      { type: 'tool_result', tool_use_id: calls[1].id, content: 'a file' },
    ];
    messages.push({ role: 'assistant', content: message.content }, { role: 'user', content: results });
    const answer = await client.messages.create({ model, max_tokens: 100, tools, messages });
    assert.equal(answer.content[0].text, 'The page has 1 image; the file says a file');
  },

  async one_call_only() {
    const tool_choice = { type: 'auto', disable_parallel_tool_use: true };
    const message = await client.messages.stream(ask('parallel', { tools, tool_choice })).finalMessage();
    assert.deepEqual(message.content.map((block) => block.input), [{ at: 'a' }]);
  },

  async count_tokens() {
    const { input_tokens } = await client.messages.countTokens({
      model,
      messages: [{ role: 'user', content: 'x'.repeat(3500) }],
    });
    assert.ok(input_tokens >= 1000 && input_tokens <= 1100);
  },

  async models() {
    const listed = [];
    for await (const each of client.models.list()) listed.push(each.id);
    assert.equal((await client.models.retrieve(listed[0])).id, listed[0]);
  },

  async error() {
    const wrong = new Anthropic({ baseURL: url, apiKey: 'wrong', maxRetries: 0 });
    await assert.rejects(wrong.messages.create(ask('hello')), Anthropic.AuthenticationError);
    await assert.rejects(client.messages.create(ask('hello', { container: 'c' })), Anthropic.BadRequestError);
    await assert.rejects(client.messages.create(ask('limited')), (error) => {
      assert.ok(error instanceof Anthropic.RateLimitError);
      assert.equal(error.error.error.type, 'rate_limit_error');
      assert.equal(error.headers.get('retry-after'), '1');
      return true;
    });
  },

  async retries() {
    const message = await client.messages.create(ask('flaky'), { maxRetries: 2 });
    assert.equal(message.content[0].text, 'Recovered');
  },

  async broken_stream() {
    const seen = [];
    const read = async () => {
      for await (const event of client.messages.stream(ask('broken'))) seen.push(event.type);
    };
    await assert.rejects(read(), Anthropic.APIError);
    assert.ok(seen.includes('content_block_delta'));
    assert.ok(!seen.includes('message_stop') && !seen.includes('content_block_stop'));
  },

  async bearer_token() {
    const bearer = new Anthropic({ baseURL: `${url}/anthropic`, authToken: key, apiKey: null, maxRetries: 0 });
    assert.equal((await bearer.messages.create(ask('hello'))).content[0].text, 'Hello, world.');
  },
};

await run(checks);
