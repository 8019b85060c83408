package names

import (
	"strings"
	"testing"
)

func TestRules(t *testing.T) {
	long := strings.Repeat("a", 64)
	tests := []struct {
		name      string
		rule      func(string) string
		good, bad []string
	}{
		{"DNSSubdomain", DNSSubdomain, []string{"a", "a.b-c.9", strings.Repeat("a", 253)}, []string{"", "A", "a..b", "-a", "a-", "a_b", strings.Repeat("a", 254)}},
		{"DNSLabel", DNSLabel, []string{"a", "9a", long[:63]}, []string{"", "a.b", "-a", "a-", "A", long}},
		{"DNS1035Label", DNS1035Label, []string{"a", "a9", long[:63]}, []string{"", "9a", "a.b", "a-", long}},
		{"Port", Port, []string{"http", "a", "9p-x", "p2p"}, []string{"", "80", "a--b", "-a", "a-", "HTTP", "abcdefghijklmnop"}},
		{"LabelKey", LabelKey, []string{"app", "App_1.x", "k8s.io/app", long[:63]}, []string{"", "/a", "a/", "a/b/c", "A.io/x", "-a", long}},
		{"LabelValue", LabelValue, []string{"", "a", "A_b.c-9", long[:63]}, []string{"-a", "a-", "a b", "ä", long}},
	}
	for _, tt := range tests {
		for _, s := range tt.good {
			if got := tt.rule(s); got != "" {
				t.Errorf("%s(%q) = %q", tt.name, s, got)
			}
		}
		for _, s := range tt.bad {
			if got := tt.rule(s); !strings.HasPrefix(got, "must ") {
				t.Errorf("%s(%q) = %q, wanted what it must be", tt.name, s, got)
			}
		}
	}
}

func FuzzRules(f *testing.F) {
	f.Add("a-b.c/d")
	f.Fuzz(func(t *testing.T, s string) {
		if DNS1035Label(s) == "" && DNSLabel(s) != "" || DNSLabel(s) == "" && DNSSubdomain(s) != "" {
			t.Errorf("%q: a label is a subdomain, and an RFC 1035 label is an RFC 1123 one", s)
		}
		if DNSLabel(s) == "" && (LabelKey(s) != "" || LabelValue(s) != "") {
			t.Errorf("%q: a DNS label is a label's key and value", s)
		}
		if Port(s) == "" && DNSLabel(s) != "" {
			t.Errorf("%q: a port's name is a DNS label", s)
		}
	})
}
