/**
 * One look for all who ask the same in one turn of the event loop.
 *
 * What must stay true: the look begins after everybody who shares it has asked, so that nobody gets an
 * answer older than the question; nothing is remembered beyond it.
 */
export type OnceATurn<Answer> = (key: string, look: () => Promise<Answer>) => Promise<Answer>;

export const onceATurn = <Answer>(): OnceATurn<Answer> => {
  const shared = new Map<string, Promise<Answer>>();
  return async (key, look) => {
    let answer = shared.get(key);
    if (answer === undefined) {
      const turn = new Promise<void>((resolve) => setImmediate(resolve));
      answer = turn.then(() => {
        shared.delete(key);
        return look();
      });
      shared.set(key, answer);
    }
    return await answer;
  };
};
