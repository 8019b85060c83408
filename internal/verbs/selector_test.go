package verbs_test

import (
	"strings"
	"testing"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/verbs"
)

func TestSelectors(t *testing.T) {
	web := map[string]string{"app": "web", "tier": "", "n": "7"}
	for _, c := range []struct {
		text  string
		match bool
		again string // String of it
	}{
		{"", true, ""},
		{"  ", true, ""},
		{"app", true, "app"},
		{"absent", false, "absent"},
		{"!absent", true, "!absent"},
		{"! app", false, "!app"},
		{"app=web", true, "app in (web)"},
		{"app == web", true, "app in (web)"},
		{"app=db", false, "app in (db)"},
		{"app!=db", true, "app notin (db)"},
		{"app!=web", false, "app notin (web)"},
		{"absent!=x", true, "absent notin (x)"},
		{"tier=", true, "tier in ()"},
		{"tier=,app=web", true, "tier in (),app in (web)"},
		{"absent=", false, "absent in ()"},
		{"app in (db, web)", true, "app in (db,web)"},
		{"app in (web,web)", true, "app in (web)"},
		{"app in(db)", false, "app in (db)"},
		{"app notin (db)", true, "app notin (db)"},
		{"absent notin (db)", true, "absent notin (db)"},
		{"tier in ()", true, "tier in ()"},
		{"app in (x,)", false, "app in (,x)"},
		{"n>6", true, "n>6"},
		{"n > 7", false, "n>7"},
		{"n<8,n>-1", true, "n<8,n>-1"},
		{"app>1", false, "app>1"},
		{"absent<1", false, "absent<1"},
		{"in in (in), !notin", false, "in in (in),!notin"},
		{"example.com/app,app", false, "example.com/app,app"},
	} {
		sel, err := verbs.ParseSelector(c.text)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		if got := sel.Matches(web); got != c.match {
			t.Errorf("%q matches: %v", c.text, got)
		}
		if got := sel.String(); got != c.again {
			t.Errorf("%q is %q, want %q", c.text, got, c.again)
		}
	}
	for _, bad := range []string{
		",", "a,", ",a", "a,,b", "=", "a b", "!", "!!a", "a in b", "a in (b", "a in (b c)", "a in (b,c", "a=b=c", "a>", "a>x",
		"a=b c", "-a", "a=-b", "a/b/c", "a!", "a(", "()", "a=(b)", "!a=b", strings.Repeat("x", 64), "a=" + strings.Repeat("x", 64),
		strings.Repeat("a,", 10000) + "a",
	} {
		if sel, err := verbs.ParseSelector(bad); !errs.Is(err, errs.Invalid) {
			t.Errorf("%.40q reads as %q, %v", bad, sel, err)
		}
	}
}

func FuzzSelector(f *testing.F) {
	for _, s := range []string{"", "a=b", "!a,b in (c,d)", "a notin ()", "a>1,b<-2", "x!=,y==", "in in (notin)", "a in (", "é=ü"} {
		f.Add(s, "a", "b")
	}
	f.Fuzz(func(t *testing.T, text, key, value string) {
		sel, err := verbs.ParseSelector(text)
		if err != nil {
			return
		}
		again, err := verbs.ParseSelector(sel.String())
		if err != nil {
			t.Fatalf("%q became %q, which does not parse: %v", text, sel, err)
		}
		if again.String() != sel.String() {
			t.Fatalf("%q became %q, then %q", text, sel, again)
		}
		for _, labels := range []map[string]string{nil, {key: value}, {key: ""}} {
			if sel.Matches(labels) != again.Matches(labels) {
				t.Fatalf("%q and %q differ on %v", text, sel, labels)
			}
		}
	})
}
