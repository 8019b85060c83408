// Package bench measures a real instance and prints ratios: what a change costs in a large state against the same change in
// a small one, in one run. `make bench BENCH=./bench/...` runs it, as root, with the binary that PODWIRE_BINARY names,
// else bin/podwire.
package bench
