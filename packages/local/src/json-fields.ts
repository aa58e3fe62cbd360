/** Our own small JSON files read back: whatever is not an object has no fields. */
export const jsonFields = (text: string): Readonly<Record<string, unknown>> => {
  try {
    const parsed: unknown = JSON.parse(text);
    if (typeof parsed === "object" && parsed !== null) return { ...parsed };
  } catch {
    // Half-written or not ours: the same as empty.
  }
  return {};
};
