package names

import "strings"

// Member is the rule of a fabric member's name: an RFC 1123 label that begins with its service's name and a dash, so that
// the name says whose replica it is.
func Member(service, name string) string {
	if rule := DNSLabel(name); rule != "" {
		return rule
	}
	if rest, ok := strings.CutPrefix(name, service+"-"); !ok || rest == "" {
		return "must begin with the service's name and a dash, such as " + service + "-1"
	}
	return ""
}
