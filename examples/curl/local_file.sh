#!/bin/sh
# A picture that the server reads itself. It has to be allowed to, below a folder:
#     tilewise serve --allowed-local-media-path .
# examples/curl/local_file.sh [URL]
set -eu
url=${1:-http://localhost:8000/v1}
pictures=$(cd "$(dirname "$0")/../../src/tilewise/demo/pictures" && pwd)

curl --silent --show-error --fail-with-body "$url/chat/completions" \
    -H 'Content-Type: application/json' \
    -d @- <<BODY
{
    "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "file://$pictures/chinese_question.png"}},
        {"type": "text", "text": "图中的形状是什么颜色？"}
    ]}],
    "temperature": 0
}
BODY
