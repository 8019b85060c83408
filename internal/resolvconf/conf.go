// Package resolvconf is the configuration of a C library's resolver, resolv.conf(5), and what Kubernetes makes of it for a
// Pod.
//
// In: the text of a file; a Pod's dnsPolicy and dnsConfig. Out: the text of a file; the names that a resolver tries. The
// agent writes by it, and dns answers by it what a Pod would be told. Invariants: pure; equal input gives equal bytes. It
// must not read or write files.
package resolvconf

import (
	"net/netip"
	"strconv"
	"strings"
)

// Conf is a resolver configuration.
type Conf struct {
	Nameservers []netip.Addr
	// Searches have no final dot, except for the root itself.
	Searches []string
	// Options are as written: "ndots:5", "edns0".
	Options []string
}

// Parse reads a resolv.conf as a kubelet does: the last search line counts,
// what cannot be understood is passed over, as the C library passes it over.
func Parse(text string) Conf {
	var c Conf
	for line := range strings.Lines(text) {
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(fields[1]); err == nil {
				c.Nameservers = append(c.Nameservers, a)
			}
		case "search":
			c.Searches = nil
			for _, s := range fields[1:] {
				if s != "." {
					s = strings.TrimSuffix(s, ".")
				}
				c.Searches = append(c.Searches, s)
			}
		case "options":
			c.Options = append(c.Options, fields[1:]...)
		}
	}
	return c
}

// String is the file: search, nameserver lines, options, in the order of a kubelet.
func (c Conf) String() string {
	var b strings.Builder
	if len(c.Searches) > 0 {
		b.WriteString("search " + strings.Join(c.Searches, " ") + "\n")
	}
	for _, ns := range c.Nameservers {
		b.WriteString("nameserver " + ns.String() + "\n")
	}
	if len(c.Options) > 0 {
		b.WriteString("options " + strings.Join(c.Options, " ") + "\n")
	}
	return b.String()
}

// Ndots is the option of that name: a name with fewer dots is tried with the search
// list first. 1 without it, 15 at most, as in the C library.
func (c Conf) Ndots() int {
	n := 1
	for _, o := range c.Options {
		if v, ok := strings.CutPrefix(o, "ndots:"); ok {
			if i, err := strconv.Atoi(v); err == nil && i >= 0 {
				n = min(i, 15)
			}
		}
	}
	return n
}

// Candidates are the full names to ask for, in order; the last one's answer counts if
// none exists.
func (c Conf) Candidates(name string) []string {
	if full, ok := strings.CutSuffix(name, "."); ok {
		return []string{full + "."}
	}
	var searched []string
	for _, s := range c.Searches {
		if s == "." {
			searched = append(searched, name+".")
			continue
		}
		searched = append(searched, name+"."+s+".")
	}
	if strings.Count(name, ".") >= c.Ndots() {
		return append([]string{name + "."}, searched...)
	}
	return append(searched, name+".")
}
