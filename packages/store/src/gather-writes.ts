/**
 * Makes one statement of several writes that don't depend on each other.
 *
 * Each becomes a part of one `with`, so that a small commit costs one round trip and one statement's
 * overhead on both sides instead of eight. What must stay true: the parts touch different rows, because
 * they see the same snapshot and PostgreSQL chooses their order.
 */
import type { Queryable, Row, Statement } from "./client.ts";

export interface GatheredWrites extends Queryable {
  /** Sends what was gathered; nothing where there is nothing. */
  send(tx: Queryable): Promise<void>;
}

interface Part {
  readonly statement: Statement;
  readonly values: readonly unknown[];
}

/** By the names of its parts: few combinations occur, each is planned once per connection. */
const combined = new Map<string, Statement>();

const combine = (parts: readonly Part[]): Statement => {
  const key = parts.map(({ statement }) => statement.name).join("+");
  const known = combined.get(key);
  if (known !== undefined) return known;
  let offset = 0;
  const texts = parts.map(({ statement, values }) => {
    const from = offset;
    offset += values.length;
    const text = statement.text.replaceAll(/\$(\d+)/g, (_, digits) => `$${Number(digits) + from}`);
    return `"${statement.name}" as (${text})`;
  });
  const statement = {
    name: `gathered-${combined.size}`,
    text: `with ${texts.join(",\n")} select`,
  };
  combined.set(key, statement);
  return statement;
};

export const gatherWrites = (): GatheredWrites => {
  const parts: Part[] = [];
  return {
    query: <R extends Row>(statement: Statement | string, values: readonly unknown[] = []) => {
      if (typeof statement === "string") throw new TypeError("expected a named statement");
      parts.push({ statement, values });
      return Promise.resolve<R[]>([]);
    },
    send: async (tx) => {
      const [only] = parts;
      if (only === undefined) return;
      if (parts.length === 1) await tx.query(only.statement, only.values);
      else
        await tx.query(
          combine(parts),
          parts.flatMap(({ values }) => values),
        );
    },
  };
};
