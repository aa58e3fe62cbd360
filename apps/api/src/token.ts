/**
 * Tokens as text: `cpc_<id>_<32 random bytes>`. The id is for people, the secret decides; what is
 * stored is the digest of the whole text. The secret has 256 random bits, so that a plain digest is
 * enough and no comparison of ours runs over it byte by byte: the database looks the digest up.
 */
import { createHash, randomBytes } from "node:crypto";
import { formatId, parseId, type TokenId, uuidV7 } from "@coppice/core";

const SHAPE = /^cpc_([0-7][0-9a-hjkmnp-tv-z]{25})_[A-Za-z0-9_-]{43}$/;

export const sha256Of = (text: string | Uint8Array): Buffer =>
  createHash("sha256").update(text).digest();

export const newId = <Id extends string>(): Id => uuidV7(Date.now(), randomBytes(10)) as Id;

/** 256 bits, for whatever has to be unguessable. */
export const newSecret = (): string => randomBytes(32).toString("base64url");

export interface MintedToken {
  readonly id: TokenId;
  readonly text: string;
  readonly secretSha256: Buffer;
}

export const mintToken = (): MintedToken => {
  const id = newId<TokenId>();
  const text = `cpc_${formatId("tok", id).slice("tok_".length)}_${newSecret()}`;
  return { id, text, secretSha256: sha256Of(text) };
};

/** undefined where the text is no token of ours. */
export const parseToken = (text: string): MintedToken | undefined => {
  const id = parseId("tok", `tok_${SHAPE.exec(text)?.[1] ?? ""}`);
  return id === undefined ? undefined : { id, text, secretSha256: sha256Of(text) };
};
