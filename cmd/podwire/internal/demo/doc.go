// Package demo shows Podwire at work: it brings an instance up, applies the mission's manifests as they stand, and proves
// each of them with packets.
//
// In: the podwire binary itself, which it runs as a user would. Out: one line per check, with what was sent, from where,
// and what came back; an error where any check failed. Invariants: no check looks at anything but answers to probes and
// output of commands; its state is its own, and is gone afterwards. It must not call a service directly.
package demo
