package errs_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"podwire.dev/internal/errs"
)

func TestText(t *testing.T) {
	t.Parallel()
	port := errs.Violation{Field: "spec.ports[0].port", Value: "70000", Rule: "must be between 1 and 65535"}
	name := errs.Violation{Field: "metadata.name", Rule: "is required"}
	for _, tt := range []struct {
		what string
		err  error
		want string
	}{
		{"message", errs.New(errs.NotFound, "Pod %s/%s: not found", "default", "web"), "Pod default/web: not found"},
		{"wrapped", errs.Wrap(errors.New("refused"), "etcd %s", "a"), "etcd a: refused"},
		{"cause without message", &errs.Error{Err: errors.New("refused")}, "refused"},
		{
			"violations, one per line", errs.InvalidFields("Service default/web", []errs.Violation{port, name}),
			"Service default/web is invalid:\n" +
				"  spec.ports[0].port: \"70000\": must be between 1 and 65535\n" +
				"  metadata.name: is required",
		},
		{
			"violations below a wrap", errs.Wrap(errs.InvalidFields("Pod a/b", []errs.Violation{name}), "web.yaml"),
			"web.yaml: Pod a/b is invalid:\n  metadata.name: is required",
		},
		{
			"a value's control characters do not reach the terminal",
			errs.InvalidFields("Pod a/b", []errs.Violation{{Field: "f", Value: "\x1b[2J", Rule: "r"}}),
			"Pod a/b is invalid:\n  f: \"\\x1b[2J\": r",
		},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("%s:\n got %q\nwant %q", tt.what, got, tt.want)
		}
	}
}

func TestNilStaysNil(t *testing.T) {
	t.Parallel()
	if errs.Wrap(nil, "x") != nil || errs.WrapAs(errs.Denied, nil, "x") != nil ||
		errs.InvalidFields("x", nil) != nil || errs.Is(nil, errs.Internal) {
		t.Error("wrapping nothing must give nothing")
	}
}

func TestKindSurvivesWrapping(t *testing.T) {
	t.Parallel()
	cause := errors.New("cause")
	for _, tt := range []struct {
		err  error
		want errs.Kind
	}{
		{cause, errs.Internal},
		{errs.New(errs.Conflict, "x"), errs.Conflict},
		{errs.Wrap(errs.New(errs.Conflict, "x"), "y"), errs.Conflict},
		{errs.Wrap(cause, "y"), errs.Internal},
		{errs.WrapAs(errs.Unavailable, cause, "y"), errs.Unavailable},
		{errs.WrapAs(errs.Denied, errs.New(errs.NotFound, "x"), "y"), errs.Denied},
		{fmt.Errorf("z: %w", errs.New(errs.Exhausted, "x")), errs.Exhausted},
		{errors.Join(cause, errs.New(errs.Exists, "x")), errs.Exists},
	} {
		if got := errs.KindOf(tt.err); got != tt.want {
			t.Errorf("KindOf(%v) = %s, want %s", tt.err, got, tt.want)
		}
	}
	if err := errs.WrapAs(errs.Unavailable, cause, "y"); !errors.Is(err, cause) {
		t.Error("the cause is lost")
	}
}

func TestViolationsOf(t *testing.T) {
	t.Parallel()
	a, b, c := errs.Violation{Field: "a"}, errs.Violation{Field: "b"}, errs.Violation{Field: "c"}
	one := errs.InvalidFields("x", []errs.Violation{a, b})
	two := errs.InvalidFields("y", []errs.Violation{c})
	err := fmt.Errorf("set: %w", errors.Join(one, errors.New("plain"), errs.Wrap(two, "file")))
	if got := errs.ViolationsOf(err); !slices.Equal(got, []errs.Violation{a, b, c}) {
		t.Errorf("got %v", got)
	}
	if got := errs.ViolationsOf(errors.New("plain")); got != nil {
		t.Errorf("got %v", got)
	}
}

func TestInvalidFieldsOwnsItsList(t *testing.T) {
	t.Parallel()
	vs := []errs.Violation{{Field: "a", Rule: "r"}}
	err := errs.InvalidFields("x", vs)
	vs[0].Field = "changed"
	if strings.Contains(err.Error(), "changed") {
		t.Error("the error changed with the caller's slice")
	}
}

func TestKindNames(t *testing.T) {
	t.Parallel()
	for k := errs.Internal; k <= errs.OutOfRange; k++ {
		if got, ok := errs.ParseKind(k.String()); !ok || got != k {
			t.Errorf("ParseKind(%q) = %v, %v", k.String(), got, ok)
		}
	}
	if _, ok := errs.ParseKind("Kind(99)"); ok || errs.Kind(99).String() != "Kind(99)" {
		t.Error("an unknown kind must not parse")
	}
}
