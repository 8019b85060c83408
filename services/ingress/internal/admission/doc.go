// Package admission holds Kubernetes' rules for Ingresses, IngressClasses and Secrets: the defaults that are filled in,
// what an update keeps, and what makes an object, a status or an update invalid.
//
// In: objects as their callers sent them, with the metadata checked already, and on an update the object that is there.
// Out: the object with its defaults, and violations that name Kubernetes' field paths. Invariants: the package is pure;
// a default never overwrites what was sent; the old object is never changed; no violation shows a value of a Secret. It
// must not judge metadata, which internal/verbs does for every kind, nor whether what an object names exists: that is the
// route table's, which fails closed.
package admission

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
)

// Kinds in the store. A Secret's is store.SecretKind.
const (
	KindIngress      = "ingresses.networking.k8s.io"
	KindIngressClass = "ingressclasses.networking.k8s.io"
)

// ruleImmutable is Kubernetes' message for a field that may not change.
const ruleImmutable = "field is immutable"

// violations collects what is wrong under field paths.
type violations []errs.Violation

func (v *violations) add(path, value, rule string, args ...any) {
	*v = append(*v, errs.Violation{Field: path, Value: value, Rule: fmt.Sprintf(rule, args...)})
}

// named adds what a rule of package names says.
func (v *violations) named(path, value string, rule func(string) string) {
	if broken := rule(value); broken != "" {
		v.add(path, value, "%s", broken)
	}
}

// host is the rule of a host that may be a wildcard.
func (v *violations) host(path, host string) {
	if !strings.Contains(host, "*") {
		v.named(path, host, names.DNSSubdomain)
		return
	}
	rest, ok := strings.CutPrefix(host, "*.")
	if !ok || names.DNSSubdomain(rest) != "" {
		v.add(path, host, "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must"+
			" consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character")
	}
}

// isAddress says whether a host is an IP address, also in the spelling with leading zeros, which Kubernetes reads too.
func isAddress(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	parts := strings.Split(host, ".")
	for _, part := range parts {
		if n, err := strconv.ParseUint(part, 10, 32); err != nil || n > 255 {
			return false
		}
	}
	return len(parts) == 4
}

// segment is the rule of a name that is one element of a path.
func (v *violations) segment(path, name string) {
	switch {
	case name == "":
		v.add(path, "", "is required")
	case name == "." || name == "..":
		v.add(path, name, "may not be '%s'", name)
	case strings.Contains(name, "/"):
		v.add(path, name, "may not contain '/'")
	case strings.Contains(name, "%"):
		v.add(path, name, "may not contain '%%'")
	}
}
