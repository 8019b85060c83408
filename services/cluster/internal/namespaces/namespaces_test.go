package namespaces

import (
	"context"
	"log/slog"
	"slices"
	"testing"

	"podwire.dev/internal/errs"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

func TestFound(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	unavailable := errs.New(errs.Unavailable, "no etcd")
	cases := []struct {
		name    string
		answers []error // one by one, then nil
		want    []string
		kind    errs.Kind // of the error; 0 is none
	}{
		{"new", nil, []string{"default", "kube-system"}, 0},
		{"there already", []error{errs.New(errs.Exists, "x"), errs.New(errs.Exists, "x")}, []string{"default", "kube-system"}, 0},
		{"etcd is away for a moment", []error{unavailable, nil, errs.New(errs.Conflict, "x")}, []string{"default", "default", "kube-system", "kube-system"}, 0},
		{"refused", []error{errs.New(errs.Denied, "x")}, []string{"default"}, errs.Denied},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			err := Found(context.Background(), func(_ context.Context, o *objectv1.Namespace) error {
				got = append(got, o.GetMetadata().GetName())
				if n := len(got); n <= len(c.answers) {
					return c.answers[n-1]
				}
				return nil
			}, quiet)
			if !slices.Equal(got, c.want) {
				t.Errorf("written are %v, want %v", got, c.want)
			}
			if c.kind == 0 && err != nil || c.kind != 0 && !errs.Is(err, c.kind) {
				t.Errorf("ends with %v", err)
			}
		})
	}
	ended, end := context.WithCancel(context.Background())
	end()
	if err := Found(ended, func(context.Context, *objectv1.Namespace) error { return unavailable }, quiet); err != nil {
		t.Errorf("a stop while etcd is away: %v", err)
	}
}

func TestProtect(t *testing.T) {
	for name, kept := range map[string]bool{"default": true, "kube-system": true, "shop": false} {
		err := Protect(&objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: name}})
		if errs.Is(err, errs.Denied) != kept {
			t.Errorf("%s: %v", name, err)
		}
	}
}
