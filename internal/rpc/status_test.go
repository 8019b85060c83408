package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
)

func TestErrorsCrossTheWire(t *testing.T) {
	t.Parallel()
	violations := []errs.Violation{
		{Field: "spec.ports[0].port", Value: "70000", Rule: "must be between 1 and 65535"},
		{Field: "metadata.name", Rule: "is required"},
		{Field: "metadata.labels", Value: "a\"b: c\nd", Rule: "value \"x\": is odd"},
	}
	b := &backend{}
	server := serve(t, b, onSocket(t))
	odd := errs.InvalidFields("x", []errs.Violation{{Field: "spec.\xff", Value: "\xff", Rule: "is odd"}})
	b.hops = func(context.Context) error { return odd }
	_, err := getHops(t.Context(), dial(t, server.target, pki.Service("test"), nil))
	if vs := errs.ViolationsOf(err); len(vs) != 1 || vs[0].Value != "\xff" {
		t.Errorf("text that is no UTF-8 arrives as %q", vs)
	}
	// A table without reads: gRPC adds words of its own to an error that it repeated for.
	conn := dial(t, server.target, pki.Service("test"), nil, rpc.WithAccess(rpc.Access{}))
	for _, tt := range []struct {
		err  error
		code codes.Code
	}{
		{errs.New(errs.Invalid, "bad"), codes.InvalidArgument},
		{errs.InvalidFields("Service default/web", violations), codes.InvalidArgument},
		{errs.Wrap(errs.InvalidFields("Pod a/b", violations[:1]), "apply"), codes.InvalidArgument},
		{errs.New(errs.NotFound, "Pod a/b: not found"), codes.NotFound},
		{errs.New(errs.Exists, "x"), codes.AlreadyExists},
		{errs.New(errs.Conflict, "x"), codes.Aborted},
		{errs.New(errs.Exhausted, "x"), codes.ResourceExhausted},
		{errs.New(errs.Unavailable, "x"), codes.Unavailable},
		{errs.New(errs.Denied, "x"), codes.PermissionDenied},
		{errs.New(errs.OutOfRange, "x"), codes.OutOfRange},
		{errs.New(errs.Internal, "x"), codes.Internal},
		{errors.New("plain"), codes.Internal},
		{fmt.Errorf("z: %w", errs.New(errs.Conflict, "x")), codes.Aborted},
		{errs.Wrap(status.Error(codes.NotFound, "x"), "wrapped status"), codes.Internal},
		{status.Error(codes.NotFound, "a status of its own"), codes.NotFound},
	} {
		b.hops = func(context.Context) error { return tt.err }
		_, err := getHops(t.Context(), conn)
		var typed *errs.Error
		if !errors.As(err, &typed) {
			t.Errorf("%v: arrives as %T", tt.err, err)
			continue
		}
		if status.Code(err) != tt.code {
			t.Errorf("%v: code %s, want %s", tt.err, status.Code(err), tt.code)
		}
		if _, ok := status.FromError(tt.err); ok && status.Code(tt.err) == tt.code {
			continue // had no kind to keep
		}
		if typed.Kind != errs.KindOf(tt.err) || err.Error() != tt.err.Error() ||
			!slices.Equal(errs.ViolationsOf(err), errs.ViolationsOf(tt.err)) {
			t.Errorf("sent %s %q %q\n got %s %q %q", errs.KindOf(tt.err), tt.err, errs.ViolationsOf(tt.err), typed.Kind, err, errs.ViolationsOf(err))
		}
	}
}

func TestStatusDetailsAreStandard(t *testing.T) {
	t.Parallel()
	b := &backend{hops: func(context.Context) error {
		return errs.InvalidFields("Pod a/b", []errs.Violation{{Field: "spec.x", Value: "y", Rule: "is wrong"}})
	}}
	server := serve(t, b, onSocket(t))
	_, err := getHops(t.Context(), dial(t, server.target, pki.Service("test"), nil))
	st, _ := status.FromError(err)
	var reason, field, text string
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			reason = d.GetDomain() + " " + d.GetReason()
		case *errdetails.BadRequest:
			field, text = d.GetFieldViolations()[0].GetField(), d.GetFieldViolations()[0].GetDescription()
		}
	}
	if reason != "podwire.dev INVALID" || field != "spec.x" || text != `value "y": is wrong` {
		t.Errorf("details %q %q %q", reason, field, text)
	}
	if !strings.Contains(st.Message(), `spec.x: "y": is wrong`) {
		t.Errorf("message %q is all that some clients read", st.Message())
	}
}

func TestHugeErrorsStillArrive(t *testing.T) {
	t.Parallel()
	var many []errs.Violation
	for i := range 5000 {
		many = append(many, errs.Violation{Field: fmt.Sprintf("spec.items[%d]", i), Value: strings.Repeat("\x01", 500), Rule: strings.Repeat("r", 500)})
	}
	b := &backend{}
	server := serve(t, b, onSocket(t))
	conn := dial(t, server.target, pki.Service("test"), nil)
	for what, send := range map[string]error{
		"violations": errs.InvalidFields("List", many),
		"text":       errs.New(errs.Invalid, "%s", strings.Repeat("ü", 1<<20)),
	} {
		b.hops = func(context.Context) error { return send }
		_, err := getHops(t.Context(), conn)
		wantKind(t, what, err, errs.Invalid)
		if what == "violations" {
			vs := errs.ViolationsOf(err)
			if len(vs) < 10 || vs[0].Field != "spec.items[0]" || !strings.Contains(vs[len(vs)-1].Rule, "more") {
				t.Errorf("%d violations arrive, the last is %v", len(vs), vs[len(vs)-1])
			}
		}
	}
}
