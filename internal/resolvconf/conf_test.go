package resolvconf

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func addrs(texts ...string) (out []netip.Addr) {
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func TestParseAndCandidates(t *testing.T) {
	c := Parse("# x\nnameserver 10.0.0.1\nnameserver nonsense\nsearch a.example. .\nsearch ns.svc b.example.\noptions ndots:2 edns0\n; y\nnameserver fe80::1%eth0")
	want := Conf{Nameservers: addrs("10.0.0.1", "fe80::1%eth0"), Searches: []string{"ns.svc", "b.example"}, Options: []string{"ndots:2", "edns0"}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v", c)
	}
	for name, want := range map[string]string{
		"web":     "web.ns.svc. web.b.example. web.",
		"a.b.c":   "a.b.c. a.b.c.ns.svc. a.b.c.b.example.",
		"a.b.c.":  "a.b.c.",
		"one.dot": "one.dot.ns.svc. one.dot.b.example. one.dot.",
	} {
		if got := strings.Join(c.Candidates(name), " "); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("nameserver 1.1.1.1\nsearch a b\noptions ndots:5\n")
	f.Add("search .\nnameserver fe80::1%1\n;x\noptions ndots:-1")
	f.Fuzz(func(t *testing.T, text string) {
		once := Parse(text)
		if n := once.Ndots(); n < 0 || n > 15 {
			t.Errorf("ndots %d", n)
		}
		if twice := Parse(once.String()); !reflect.DeepEqual(once.String(), twice.String()) && !strings.Contains(once.String(), "..") && !strings.Contains(once.String(), "%") {
			t.Errorf("%q: %q, then %q", text, once.String(), twice.String())
		}
	})
}
