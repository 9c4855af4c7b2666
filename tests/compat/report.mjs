// What every JavaScript program of the matrix needs: its settings, and a report line for each feature.

// What matrix.py passes on: URLs, the API key, prompts, and what the answers have to contain.
export const settings = JSON.parse(process.env.COMPAT);

// Milliseconds for one feature.
const LIMIT = 30_000;

// Run each feature, and print a line of JSON about it. A feature fails by throwing.
export async function run(features) {
  for (const [feature, call] of Object.entries(features)) {
    let error = null;
    let timer;
    try {
      const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error("no answer in time")), LIMIT);
      });
      await Promise.race([call(), late]);
    } catch (thrown) {
      error = `${thrown?.name}: ${thrown?.message ?? thrown}`;
    }
    clearTimeout(timer);
    console.log(JSON.stringify({ feature, error }));
  }
}

export function check(condition, why) {
  if (!condition) throw new Error(why);
}

// The error that a call throws.
export async function thrownBy(call) {
  try {
    await call();
  } catch (error) {
    return error;
  }
  throw new Error("no error");
}
