package route

import (
	"net/url"
	"strings"
	"testing"

	"podwire.dev/internal/errs"
)

func TestParsePath(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ in, decoded, slashed, forward string }{
		{"", "/", "", "/"},
		{"/", "/", "", "/"},
		{"/a/b", "/a/b", "", "/a/b"},
		{"/a/b/", "/a/b/", "", "/a/b/"},
		{"/a//b", "/a/b", "", "/a//b"},
		{"//a", "/a", "", "//a"},
		{"/a//", "/a/", "", "/a//"},
		{"/a/./b", "/a/b", "", "/a/b"},
		{"/a/b/..", "/a/", "", "/a/"},
		{"/a/b/.", "/a/b/", "", "/a/b/"},
		{"/a/../b", "/b", "", "/b"},
		{"/a//../b", "/b", "", "/b"},
		{"/a/%2e%2E/b", "/b", "", "/b"},
		{"/a%20b", "/a b", "", "/a%20b"},
		{"/x/../a%20b", "/a b", "", "/a%20b"},
		{"/a%2Fb", "/a\x00b", "/a/b", "/a%2Fb"},
		{"/x/../a%2fb", "/a\x00b", "/a/b", "/a%2Fb"},
		{`/a\b`, `/a\b`, "/a/b", `/a\b`},
		{"/a%5Cb", `/a\b`, "/a/b", "/a%5Cb"},
		{"/%2F", "/\x00", "/", "/%2F"},
		{"/.well-known/x", "/.well-known/x", "", "/.well-known/x"},
		{"/...", "/...", "", "/..."},
		{"/a;b=c/d", "/a;b=c/d", "", "/a;b=c/d"},
		{"/ä", "/ä", "", "/ä"},
		{"/%C3%A4/../%C3%A4", "/ä", "", "/%C3%A4"},
	} {
		p, err := ParsePath(tt.in)
		if err != nil || p.decoded != tt.decoded || p.slashed != tt.slashed || p.forward() != tt.forward {
			t.Errorf("%q: %+v %q, %v", tt.in, p, p.forward(), err)
		}
	}
	for _, in := range []string{
		"a", "*", "/..", "/a/../..", "/%2e%2e/x", "/a%", "/a%2", "/a%zz", "/a%00b", "/a\x01", "/a\x7f",
		"/a%2F..%2Fb", "/a/..%2Fb", "/a%2f%2e%2e", `/a\..\b`, "/a%5C..%5Cb", "/a/..;/b", "/a/..;x=y/b", "/a/.;/b", "/a%2F..;x",
	} {
		if p, err := ParsePath(in); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %+v, %v", in, p, err)
		}
	}
}

// FuzzPath looks for a path whose decoded form could be read as another one once more, or that is not sent as it was judged.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{"/a/b", "/a%2Fb/../c", "//x/./y//", "/%25%32%46", `/\..`, "/a;b/..", "/%c3%a4"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePath(text)
		if err != nil {
			return
		}
		for _, form := range []string{p.decoded, p.slashed} {
			if form == "" {
				continue
			}
			if form[0] != '/' || strings.Contains(form, "//") || strings.Contains(form+"/", "/../") || strings.Contains(form+"/", "/./") {
				t.Fatalf("%q is judged as %q", text, form)
			}
		}
		sent := p.forward()
		again, err := ParsePath(sent)
		if err != nil || again.decoded != p.decoded || again.slashed != p.slashed {
			t.Fatalf("%q is judged as %q and sent as %q, which is judged as %q (%v)", text, p.decoded, sent, again.decoded, err)
		}
		if p.resolved {
			if u, err := url.ParseRequestURI(sent); err != nil || u.EscapedPath() != sent {
				t.Fatalf("%q is sent as %q, which a parser reads as %v (%v)", text, sent, u, err)
			}
		}
	})
}
