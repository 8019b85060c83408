#!/usr/bin/env bash
# deps.sh build|demo|compose|test installs what that target needs on Debian or Ubuntu and says what it does.
# Nothing is installed, and no package list is fetched, when everything is present.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)

# <command that proves it>:<Debian package>. The product itself needs none of these at run time.
build=(make:make git:git)
demo=()
compose=(
	update-ca-certificates:ca-certificates # what the images trust
)
engine=(docker:docker.io dockerd:docker.io)
test=(
	nft:nftables       # the second opinion on our rules: they must load and list with the distribution's nft
	ip:iproute2        # what a human would use to look at the namespaces
	ping:iputils-ping  # ICMP from outside our own code
	pgrep:procps       # whether a container's process is really gone
)

case "${1:-}" in
build) want=("${build[@]}") module=$here/.. ;;
demo) want=("${build[@]}" "${demo[@]}") module=$here/.. ;;
# Linters and Compose ask for the newest Go.
compose) want=("${build[@]}" "${compose[@]}") module=$here/../tools/compose ;;
test) want=("${build[@]}" "${demo[@]}" "${compose[@]}" "${test[@]}") module=$here/../tools/compose ;;
*)
	echo "usage: $0 build|demo|compose|test" >&2
	exit 2
	;;
esac

# An engine that answers is good enough, wherever it is; so is one that is installed and does not run.
case $1 in
compose | test) docker version >/dev/null 2>&1 || want+=("${engine[@]}") ;;
esac

min_go=$(sed -n 's/^go //p' "$module/go.mod")
if ! command -v go >/dev/null; then
	echo "deps: Go is not in PATH: install Go $min_go or newer from https://go.dev/dl/" >&2
	exit 1
fi
have_go=$(cd "$module" && go env GOVERSION)
have_go=${have_go#go}
if [ "$(printf '%s\n%s\n' "$min_go" "${have_go%%[- ]*}" | sort -V | head -n1)" != "$min_go" ]; then
	echo "deps: found Go $have_go ($(command -v go)), need $min_go or newer: install it from https://go.dev/dl/, or unset GOTOOLCHAIN=local" >&2
	exit 1
fi

missing=()
for entry in "${want[@]}"; do
	# Debian keeps nft and ip in sbin, which is not in every user's PATH.
	PATH=$PATH:/usr/sbin:/sbin command -v "${entry%%:*}" >/dev/null && continue
	[[ " ${missing[*]} " == *" ${entry##*:} "* ]] || missing+=("${entry##*:}")
done
if [ ${#missing[@]} -eq 0 ]; then
	echo "deps: Go $have_go and everything '$1' needs are present"
	exit 0
fi
if ! command -v apt-get >/dev/null; then
	echo "deps: missing: ${missing[*]} (names of Debian packages), and there is no apt-get here: install them by hand" >&2
	exit 1
fi
echo "deps: installing from the distribution: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"$here/as-root" apt-get update -qq
"$here/as-root" apt-get install -y -qq --no-install-recommends "${missing[@]}"
echo "deps: done"
