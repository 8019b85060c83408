// Package sysctl reads and writes the kernel's settings below /proc/sys, of the network namespace of the calling thread.
//
// In: a name, which is the path below /proc/sys ("net/ipv4/conf/eth0.100/rp_filter": link names may contain dots, so the
// dotted form is ambiguous). Out: the value, without surrounding space.
//
// Ensure writes only where the value differs, so that applying a state twice writes nothing. The package keeps no state and
// remembers nothing: who changes a setting that is not on a link of ours records what was there before.
package sysctl

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"

	"podwire.dev/internal/errs"
)

// Get returns a value, and whether the setting exists in this kernel and namespace.
func Get(name string) (value string, exists bool, err error) {
	b, err := os.ReadFile(path.Join("/proc/sys", name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, errs.WrapAs(errs.Internal, err, "sysctl: read %s", name)
	}
	return strings.TrimSpace(string(b)), true, nil
}

// Set writes a value. A setting that does not exist is NotFound.
func Set(name, value string) error {
	f, err := os.OpenFile(path.Join("/proc/sys", name), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "sysctl: %s does not exist in this kernel", name)
	}
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "sysctl: open %s", name)
	}
	_, err = f.WriteString(value)
	return errs.WrapAs(errs.Internal, errors.Join(err, f.Close()), "sysctl: set %s to %q", name, value)
}

// Ensure makes a setting have a value, and returns the number of writes that it took: 0 or 1. A setting that does not exist,
// as IPv6's where the kernel has none, is left alone.
func Ensure(name, value string) (int, error) {
	actual, exists, err := Get(name)
	if err != nil || !exists || actual == value {
		return 0, err
	}
	return 1, Set(name, value)
}
