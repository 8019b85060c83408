package explain_test

import (
	"net/netip"
	"strings"
	"testing"

	"podwire.dev/cmd/podwire/internal/cli/explain"
	"podwire.dev/internal/errs"
)

func addr(text string) explain.End {
	return explain.End{Kind: explain.Address, Addr: netip.MustParseAddr(text)}
}

func TestParseFrom(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]explain.End{
		"outside":            {Kind: explain.Outside},
		"web":                {Kind: explain.Pod, Name: "web"},
		"pod/web":            {Kind: explain.Pod, Name: "web"},
		"shop/web":           {Kind: explain.Pod, Namespace: "shop", Name: "web"},
		"pod/shop/web":       {Kind: explain.Pod, Namespace: "shop", Name: "web"},
		"node/node-1":        {Kind: explain.Node, Name: "node-1"},
		"node/n.example.org": {Kind: explain.Node, Name: "n.example.org"},
		"10.0.0.1":           addr("10.0.0.1"),
		"fd00::1":            addr("fd00::1"),
		"[fd00::1]":          addr("fd00::1"),
		"::ffff:10.0.0.1":    addr("10.0.0.1"),
	} {
		if got, err := explain.ParseFrom(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "/", "a/", "/a", "a/b/c", "pod/", "pod/a/b/c", "pod//a", "node/", "node/a/b", "service/web", "bad::addr", "web:80", "fe80::1%eth0", "10.0.0.1:80", "UP", "a b", "web.", "http://web/"} {
		if got, err := explain.ParseFrom(text); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %+v, %v; want an Invalid error", text, got, err)
		}
	}
}

func TestParseTarget(t *testing.T) {
	t.Parallel()
	name := func(kind explain.Kind, ns, name string) explain.End {
		return explain.End{Kind: kind, Namespace: ns, Name: name}
	}
	for text, want := range map[string]explain.Target{
		"web":                             {End: name(explain.Any, "", "web"), Protocol: "TCP"},
		"web:80":                          {End: name(explain.Any, "", "web"), Port: 80, Protocol: "TCP"},
		"web:http":                        {End: name(explain.Any, "", "web"), PortName: "http", Protocol: "TCP"},
		"web.shop:53/udp":                 {End: name(explain.Any, "", "web.shop"), Port: 53, Protocol: "UDP"},
		"shop/web:80/SCTP":                {End: name(explain.Any, "shop", "web"), Port: 80, Protocol: "SCTP"},
		"svc/web":                         {End: name(explain.Service, "", "web"), Protocol: "TCP"},
		"service/shop/web:1":              {End: name(explain.Service, "shop", "web"), Port: 1, Protocol: "TCP"},
		"pod/udp":                         {End: name(explain.Pod, "", "udp"), Protocol: "TCP"},
		"pod/udp/udp":                     {End: name(explain.Pod, "", "udp"), Protocol: "UDP"},
		"node/node-1:30007":               {End: name(explain.Node, "", "node-1"), Port: 30007, Protocol: "TCP"},
		"10.0.0.1:65535":                  {End: addr("10.0.0.1"), Port: 65535, Protocol: "TCP"},
		"fd00::1":                         {End: addr("fd00::1"), Protocol: "TCP"},
		"fd00::1:80":                      {End: addr("fd00::1:80"), Protocol: "TCP"}, // all of it is an address
		"[fd00::1]:80/udp":                {End: addr("fd00::1"), Port: 80, Protocol: "UDP"},
		"[fd00::1]":                       {End: addr("fd00::1"), Protocol: "TCP"},
		"web.shop.svc.cluster.local.:80":  {End: name(explain.Any, "", "web.shop.svc.cluster.local."), Port: 80, Protocol: "TCP"},
		"http://web.example.com":          {End: name(explain.Any, "", "web.example.com"), Port: 80, Protocol: "TCP", Scheme: "http", Path: "/"},
		"HTTPS://Web.Example.com/a/b?c#d": {End: name(explain.Any, "", "web.example.com"), Port: 443, Protocol: "TCP", Scheme: "https", Path: "/a/b"},
		"http://[fd00::1]:8080?q":         {End: addr("fd00::1"), Port: 8080, Protocol: "TCP", Scheme: "http", Path: "/"},
		"http://10.0.0.1/udp":             {End: addr("10.0.0.1"), Port: 80, Protocol: "TCP", Scheme: "http", Path: "/udp"},
	} {
		if got, err := explain.ParseTarget(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", ":80", "web:", "web:0", "web:65536", "web:-1", "web:a_b", "[web]:80", "[fd00::1", "[fd00::1]80", "[fd00::1]:", "fd00::1]:80",
		"10.0.0.1:http", "node/a:http", "web:80/icmp", "a:b:80", "/tcp", "[fe80::1%eth0]:80",
		"ftp://web/", "http://", "http:///a", "http://web:http/", "http://web:80a/", "http://u@web/", "http://web/a b", "web..", "shop/web.",
	} {
		if got, err := explain.ParseTarget(text); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %+v, %v; want an Invalid error", text, got, err)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{"web", "shop/web:80/udp", "[fd00::1]:80", "node/n:1", "svc/a.b:http/TCP", "pod/udp", "::ffff:1.2.3.4", "a//b", "1:1", "http://a.b:1/c?d", "https://[::1]/%20", "https://#", "web.shop."} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := explain.ParseTarget(text)
		if err != nil {
			if !errs.Is(err, errs.Invalid) || strings.Contains(err.Error(), "\x1b") {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		again, err := explain.ParseTarget(got.String())
		if err != nil || again != got {
			t.Errorf("%q is %+v, printed %q, which is %+v, %v", text, got, got, again, err)
		}
	})
}

func FuzzParseFrom(f *testing.F) {
	for _, seed := range []string{"web", "outside", "pod/outside", "shop/web", "fd00::1", "[::1]", "node/n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := explain.ParseFrom(text)
		if err != nil {
			return
		}
		if again, err := explain.ParseFrom(got.String()); err != nil || again != got {
			t.Errorf("%q is %+v, printed %q, which is %+v, %v", text, got, got, again, err)
		}
	})
}
