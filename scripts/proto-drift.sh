#!/usr/bin/env bash
# proto-drift.sh generates the Go of proto/ into a directory of its own and compares it with what is committed beside
# the .proto files, in both directions. The working tree is left alone, so a failing check changes nothing.
set -euo pipefail

cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
go tool -modfile=tools/go.mod buf generate --output "$fresh"

generated=$(cd "$fresh" && find proto -name '*.pb.go' | sort)
committed=$(find proto -name '*.pb.go' | sort)
if [ -z "$generated" ]; then
	echo "proto-drift: buf generated nothing: proto/ holds no .proto file, or buf.gen.yaml no plug-in" >&2
	exit 1
fi
drift=0
for file in $(printf '%s\n%s\n' "$generated" "$committed" | sort -u); do
	if [ ! -e "$fresh/$file" ]; then
		echo "proto-drift: $file has no source any more: delete it" >&2
		drift=1
	elif [ ! -e "$file" ]; then
		echo "proto-drift: $file is missing" >&2
		drift=1
	elif ! diff -u "$file" "$fresh/$file" | head -n 40 >&2; then
		echo "proto-drift: $file differs from its source" >&2
		drift=1
	fi
done
if [ "$drift" -ne 0 ]; then
	echo "proto-drift: run 'make proto' and commit the result" >&2
	exit 1
fi
echo "proto-drift: $(printf '%s\n' "$generated" | wc -l) generated files agree with their sources"
