package probe

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// dnsServer answers over UDP from a table of names and types. A name that has other types is NODATA, one that begins with
// "silent" is not answered at all.
func dnsServer(t *testing.T, answers map[string][]dnsmessage.ResourceBody) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			q := m.Questions[0]
			if strings.HasPrefix(q.Name.String(), "silent") {
				continue
			}
			m.Response, m.RCode = true, dnsmessage.RCodeNameError
			for key, bodies := range answers {
				name, kind, _ := strings.Cut(key, " ")
				if name != q.Name.String() {
					continue
				}
				m.RCode = dnsmessage.RCodeSuccess
				for _, body := range bodies {
					header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 5}
					if _, alias := body.(*dnsmessage.CNAMEResource); alias {
						header.Type = dnsmessage.TypeCNAME
					}
					if kind == q.Type.String() || header.Type == dnsmessage.TypeCNAME {
						m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: body})
					}
				}
			}
			b, _ := m.Pack()
			_, _ = c.WriteToUDPAddrPort(b, from)
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// TestResolve asks as a Pod does: by the search list of its resolv.conf, and with an exit code for each end.
func TestResolve(t *testing.T) {
	name := dnsmessage.MustNewName
	server := dnsServer(t, map[string][]dnsmessage.ResourceBody{
		"web.default.svc.cluster.local. TypeA": {&dnsmessage.AResource{A: [4]byte{10, 96, 0, 1}}},
		"_http._tcp.web.default.svc.cluster.local. TypeSRV": {&dnsmessage.SRVResource{
			Weight: 100, Port: 80, Target: name("web.default.svc.cluster.local."),
		}},
		"1.0.96.10.in-addr.arpa. TypePTR":          {&dnsmessage.PTRResource{PTR: name("web.default.svc.cluster.local.")}},
		"alias.default.svc.cluster.local. TypeTXT": {&dnsmessage.CNAMEResource{CNAME: name("nothing.example.")}},
		"example.org. TypeA":                       {&dnsmessage.AResource{A: [4]byte{192, 0, 2, 80}}},
	})
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("search default.svc.cluster.local svc.cluster.local\nnameserver 192.0.2.1\noptions ndots:5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]struct {
		code int
		text string
		note string
	}{
		"web":                                {Reached, "web.default.svc.cluster.local. 5 A 10.96.0.1", ""},
		"web --type AAAA":                    {Refused, "", "web.default.svc.cluster.local. AAAA: NODATA"},
		"web.default":                        {Reached, "web.default.svc.cluster.local. 5 A 10.96.0.1", ""},
		"web.nowhere":                        {Refused, "", "web.nowhere. AAAA: NXDOMAIN"},
		"_http._tcp.web --type srv":          {Reached, "_http._tcp.web.default.svc.cluster.local. 5 SRV 0 100 80 web.default.svc.cluster.local.", ""},
		"_http._tcp.web SRV":                 {Reached, "_http._tcp.web.default.svc.cluster.local. 5 SRV 0 100 80 web.default.svc.cluster.local.", ""},
		"10.96.0.1":                          {Reached, "1.0.96.10.in-addr.arpa. 5 PTR web.default.svc.cluster.local.", ""},
		"alias":                              {Refused, "", "alias.default.svc.cluster.local. AAAA: NODATA"},
		"alias --type CNAME":                 {Reached, "alias.default.svc.cluster.local. 5 CNAME nothing.example.", ""},
		"example.org":                        {Reached, "example.org. 5 A 192.0.2.80", ""},
		"nobody.example.":                    {Refused, "", "nobody.example. AAAA: NXDOMAIN"},
		"silent.example. --timeout 30ms":     {TimedOut, "", ""},
		"web --type HINFO":                   {NotTried, "", "type HINFO is not known"},
		strings.Repeat("x", 64) + ".example": {Refused, "", ""},
	} {
		o, err := parse(append([]string{"resolve"}, strings.Fields(args)...))
		if err != nil {
			t.Fatal(err)
		}
		o.conf, o.server = conf, server
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		if r := tryResolve(ctx, o); r.code != want.code || r.text != want.text || !strings.Contains(r.note, want.note) {
			t.Errorf("%s: %+v, want %+v", args, r, want)
		}
		cancel()
	}
	for addr, want := range map[string]string{"10.96.0.1": "1.0.96.10.in-addr.arpa.", "::1": "1." + strings.Repeat("0.", 31) + "ip6.arpa."} {
		if got := reverseName(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %s", addr, got)
		}
	}
}

func TestServerOption(t *testing.T) {
	for text, want := range map[string]string{
		"10.96.0.10": "10.96.0.10:53", "fd00:10:96::a": "[fd00:10:96::a]:53", "127.0.0.1:5353": "127.0.0.1:5353", "dns.example": "", "": "invalid AddrPort",
	} {
		o, err := parse([]string{"resolve", "web", "--server", text})
		if got := o.server.String(); (err != nil) != (want == "") || err == nil && got != want {
			t.Errorf("%q: %s, %v", text, got, err)
		}
	}
}
