#!/bin/sh
# An answer that follows a schema, and the likeliest tokens at each place. The server:
#     tilewise serve --allowed-local-media-path .
# examples/curl/structured.sh [URL]
set -eu
url=${1:-http://localhost:8000/v1}
pictures=$(cd "$(dirname "$0")/../../src/tilewise/demo/pictures" && pwd)

curl --silent --show-error --fail-with-body "$url/chat/completions" \
    -H 'Content-Type: application/json' \
    -d @- <<BODY
{
    "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "file://$pictures/reading_text.png"}},
        {"type": "text", "text": "What is the word?"}
    ]}],
    "response_format": {"type": "json_schema", "json_schema": {
        "name": "word", "schema": {"enum": ["bird", "cat", "dog", "star"]}
    }},
    "logprobs": true,
    "top_logprobs": 2,
    "temperature": 0
}
BODY
