#!/usr/bin/env bash
# Text to image, then image to image, with curl:  [SERVICE_KEY=KEY] examples/curl.sh [URL]
set -euo pipefail

url=${1:-${SERVICE_URL:-http://127.0.0.1:8000}}
key=${SERVICE_KEY:-}
# curl gets it on stdin: everybody on a machine can see the arguments of its programs.
header=${key:+X-API-Key: $key}

# ask FILE PATH ARGUMENTS... saves the answer to FILE. When the service is busy (429, 503) curl itself waits for as long as
# Retry-After says, and tries again.
ask() {
  local file=$1 path=$2
  shift 2
  if ! curl --silent --fail-with-body --retry 5 --output "$file" --header @- "$url$path" "$@" <<<"$header"; then
    # Every error is application/problem+json; `jq -r .detail` reads it better.
    sed -n 's/.*"detail":"\([^"]*\)".*/\1/p' "$file" >&2
    rm -f "$file"
    return 1
  fi
  echo "$file"
}

# Not --json, which also sends `Accept: application/json` and so asks for an envelope in place of the bare picture.
ask one.png /txt2img --header 'Content-Type: application/json' --data '{"prompt": "a fox with a scarf", "seed": 1}'

# The same fox on another background. A form's fields are those of the JSON body, and the file.
ask two.png /img2img --form image=@one.png --form prompt='a fox on a blue background' \
  --form strength=0.5 --form num_inference_steps=2 --form seed=1
