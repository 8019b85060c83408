package rpc

import (
	"testing"

	"podwire.dev/internal/errs"
)

func FuzzUndescribe(f *testing.F) {
	f.Add("70000", "must be between 1 and 65535")
	f.Add("", "is required")
	f.Add("a\"b: c\n", `value "x": y`)
	f.Fuzz(func(t *testing.T, value, rule string) {
		undescribe(rule) // any text of another implementation
		if value == "" || len(value) > maxViolationField || len(rule) > maxViolationField || valid(rule) != rule {
			return
		}
		gotValue, gotRule := undescribe(describe(errs.Violation{Value: value, Rule: rule}))
		if gotValue != value || gotRule != rule {
			t.Errorf("%q %q became %q %q", value, rule, gotValue, gotRule)
		}
	})
}
