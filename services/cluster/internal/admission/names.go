// Package admission holds Kubernetes' rules for Namespaces, Nodes and Pods: the defaults that are filled in, and what
// makes an object, a status or an update invalid.
//
// In: objects as their callers sent them, with the metadata checked already, and on an update the object that is there.
// Out: the object with its defaults, and violations that name Kubernetes' field paths. Invariants: the package is pure;
// a default never overwrites what was sent; the old object is never changed. It must not judge metadata, which
// internal/verbs does for every kind, nor look at any other object.
package admission

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
)

// violations collects what is wrong under field paths.
type violations []errs.Violation

func (v *violations) add(path, value, rule string, args ...any) {
	*v = append(*v, errs.Violation{Field: path, Value: value, Rule: fmt.Sprintf(rule, args...)})
}

// oneOf adds a violation unless value is one of the allowed.
func (v *violations) oneOf(path, value string, allowed ...string) {
	for _, a := range allowed {
		if value == a {
			return
		}
	}
	v.add(path, value, "must be one of %s", strings.Join(allowed, ", "))
}

// between adds a violation unless value is in the inclusive range.
func (v *violations) between(path string, value, low, high int32) {
	if value < low || value > high {
		v.add(path, strconv.Itoa(int(value)), "must be between %d and %d, inclusive", low, high)
	}
}

// atLeast adds a violation for a value that is too small.
func (v *violations) atLeast(path string, value, low int32) {
	if value < low {
		v.add(path, strconv.Itoa(int(value)), "must be greater than or equal to %d", low)
	}
}

// isAlnum says whether c is an ASCII letter or digit.
func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// named adds what a rule of package names says.
func (v *violations) named(path, value string, rule func(string) string) {
	if broken := rule(value); broken != "" {
		v.add(path, value, "%s", broken)
	}
}

func (v *violations) qualified(path, value string) {
	if value == "" {
		v.add(path, "", "is required")
		return
	}
	v.named(path, value, names.LabelKey)
}

// address checks an IP address and says whether it is one.
func (v *violations) address(path, value string) bool {
	a, err := netip.ParseAddr(value)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		v.add(path, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
		return false
	}
	return true
}

// envNameRule says why a name is no name of a variable, or nothing. Kubernetes allows every printable ASCII character
// but '=' (KEP-4369).
func envNameRule(name string) string {
	if name == "" {
		return "is required"
	}
	for i := range len(name) {
		if name[i] < 0x20 || name[i] > 0x7e || name[i] == '=' {
			return "must consist only of printable ASCII characters other than '='"
		}
	}
	return ""
}

// ptr is a pointer to a copy.
func ptr[T any](v T) *T { return &v }

// fill sets an optional field that is absent.
func fill[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}
