// Package names has Kubernetes' rules for names, label keys and label values, and the IANA's for port names.
//
// In: text. Out: what the text breaks, in words that follow "must"; nothing for good text. The package is pure, and the
// one place of these rules: internal/verbs judges metadata by them, the services' cores everything else.
package names

import (
	"fmt"
	"strings"
)

// Lengths that Kubernetes allows, in bytes.
const (
	maxSubdomain = 253
	maxLabel     = 63
	maxPort      = 15
)

// DNSSubdomain is the rule of most kinds' names: an RFC 1123 subdomain in lower case.
func DNSSubdomain(name string) string {
	if len(name) > maxSubdomain {
		return tooLong(maxSubdomain)
	}
	for part := range strings.SplitSeq(name, ".") {
		if !isLabel(part, isDigit) {
			return "must be a lowercase RFC 1123 subdomain: lower case letters, digits, '-' or '.', beginning and ending with a letter or digit"
		}
	}
	return ""
}

// DNSLabel is the rule of Namespaces, containers and host names: an RFC 1123 label in lower case.
func DNSLabel(name string) string {
	if len(name) > maxLabel {
		return tooLong(maxLabel)
	}
	if !isLabel(name, isDigit) {
		return "must be a lowercase RFC 1123 label: lower case letters, digits or '-', beginning and ending with a letter or digit"
	}
	return ""
}

// DNS1035Label is the rule of Services: an RFC 1035 label, which begins with a letter.
func DNS1035Label(name string) string {
	if len(name) > maxLabel {
		return tooLong(maxLabel)
	}
	if !isLabel(name, func(byte) bool { return false }) {
		return "must be an RFC 1035 label: lower case letters, digits or '-', beginning with a letter and ending with a letter or digit"
	}
	return ""
}

// Port is the rule of a port's name: an IANA service name (RFC 6335 section 5.1).
func Port(name string) string {
	letter := false
	for i := range len(name) {
		switch c := name[i]; {
		case isLower(c):
			letter = true
		case isDigit(c):
		case c != '-':
			return "must contain only lower case letters, digits and hyphens"
		case i == 0 || i == len(name)-1 || name[i-1] == '-':
			return "must not begin or end with a hyphen, nor contain two in a row"
		}
	}
	switch {
	case name == "" || len(name) > maxPort:
		return "must be between 1 and 15 characters"
	case !letter:
		return "must contain at least one letter (a-z)"
	}
	return ""
}

// LabelKey is the rule for qualified names (keys of labels, annotations and taints): an optional DNS subdomain and a
// slash, then at most 63 characters.
func LabelKey(key string) string {
	prefix, name, qualified := strings.Cut(key, "/")
	if !qualified {
		prefix, name = "", key
	}
	if qualified && DNSSubdomain(prefix) != "" || !isWord(name) {
		return "must be a qualified name: an optional DNS subdomain and '/', then up to 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit"
	}
	return ""
}

// LabelValue is the rule for the values of labels.
func LabelValue(value string) string {
	if value != "" && !isWord(value) {
		return "must be empty or up to 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit"
	}
	return ""
}

func tooLong(limit int) string { return fmt.Sprintf("must be no more than %d bytes", limit) }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isLower(c byte) bool { return 'a' <= c && c <= 'z' }
func isUpper(c byte) bool { return 'A' <= c && c <= 'Z' }

// isLabel says whether s is a DNS label in lower case that begins with a letter or with what first allows.
func isLabel(s string, first func(byte) bool) bool {
	if s == "" || !isLower(s[0]) && !first(s[0]) || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isLower(c) && !isDigit(c) && c != '-' {
			return false
		}
	}
	return true
}

// isWord says whether s is a label's name or value: letters, digits, '-', '_' and '.', with a letter or digit at both ends.
func isWord(s string) bool {
	alnum := func(c byte) bool { return isLower(c) || isUpper(c) || isDigit(c) }
	if s == "" || len(s) > maxLabel || !alnum(s[0]) || !alnum(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !alnum(c) && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}
