#!/usr/bin/env bash
# Text to image, image to image and inpainting, with curl:  [SERVICE_KEY=KEY] examples/curl.sh [URL]
set -euo pipefail

url=${1:-${SERVICE_URL:-http://127.0.0.1:8000}}
key=${SERVICE_KEY:-}
# curl reads the key from stdin, because all users of a machine can see the arguments of its programs.
header=${key:+X-API-Key: $key}

# ask FILE PATH ARGUMENTS... saves the answer to FILE. If the service is busy (429, 503), curl itself retries after the time in
# Retry-After.
ask() {
  local file=$1 path=$2
  shift 2
  if ! curl --silent --fail-with-body --retry 5 --output "$file" --header @- "$url$path" "$@" <<<"$header"; then
    # Every error is application/problem+json; `jq -r .detail` is a better parser.
    sed -n 's/.*"detail":"\([^"]*\)".*/\1/p' "$file" >&2
    rm -f "$file"
    return 1
  fi
  echo "$file"
}

# Do not use --json: it also sends `Accept: application/json`, and the answer would be an envelope instead of the bare picture.
ask one.png /txt2img --header 'Content-Type: application/json' --data '{"prompt": "a fox with a scarf", "seed": 1}'

# The same fox on another background. The form has the fields of the JSON body, and the file.
ask two.png /img2img --form image=@one.png --form prompt='a fox on a blue background' \
  --form strength=0.5 --form num_inference_steps=2 --form seed=1

# The same picture, 256 pixels wider on both sides (top, right, bottom, left). To draw a part of a picture anew, send
# --form mask=@mask.png, which is white there.
ask three.png /inpaint --form image=@two.png --form prompt='a fox in a wide blue room' \
  --form extend=0,256,0,256 --form seed=1
