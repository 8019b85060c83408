package rpc

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
)

// errorDomain is the domain of our ErrorInfo details (google.rpc.ErrorInfo).
const errorDomain = "podwire.dev"

// An error travels in the trailers, whose size is bounded on both sides: what is beyond
// these bounds is cut, and says so.
const (
	maxStatusText     = 4 << 10  // bytes of the message
	maxStatusDetails  = 16 << 10 // bytes of all violations; base64 adds a third
	maxViolationField = 256      // bytes of each part of one
)

var kindCodes = [...]codes.Code{
	errs.Internal: codes.Internal, errs.Invalid: codes.InvalidArgument, errs.NotFound: codes.NotFound,
	errs.Exists: codes.AlreadyExists, errs.Conflict: codes.Aborted, errs.Exhausted: codes.ResourceExhausted,
	errs.Unavailable: codes.Unavailable, errs.Denied: codes.PermissionDenied,
	errs.OutOfRange: codes.OutOfRange,
}

// codeOf is the gRPC code of a kind.
func codeOf(kind errs.Kind) codes.Code {
	if kind < 0 || int(kind) >= len(kindCodes) {
		return codes.Internal
	}
	return kindCodes[kind]
}

// kindOf is the kind of a status that another implementation made.
func kindOf(code codes.Code) errs.Kind {
	switch code {
	case codes.InvalidArgument:
		return errs.Invalid
	case codes.OutOfRange:
		return errs.OutOfRange
	case codes.NotFound:
		return errs.NotFound
	case codes.AlreadyExists:
		return errs.Exists
	case codes.Aborted, codes.FailedPrecondition:
		return errs.Conflict
	case codes.ResourceExhausted:
		return errs.Exhausted
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return errs.Unavailable
	case codes.PermissionDenied, codes.Unauthenticated:
		return errs.Denied
	default:
		return errs.Internal
	}
}

// toStatus is what leaves a server for err. A context that ended under the handler wins
// over what the handler made of it, and somebody without a certificate who is denied
// is told that one is needed.
func toStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var typed *errs.Error
	if !errors.As(err, &typed) {
		if _, ok := status.FromError(err); ok {
			return err
		}
	}
	kind := errs.KindOf(err)
	code := codeOf(kind)
	switch {
	case errors.Is(err, context.DeadlineExceeded) && errors.Is(ctx.Err(), context.DeadlineExceeded):
		kind, code = errs.Unavailable, codes.DeadlineExceeded
	case errors.Is(err, context.Canceled) && errors.Is(ctx.Err(), context.Canceled):
		kind, code = errs.Unavailable, codes.Canceled
	case kind == errs.Denied && FromContext(ctx) == pki.Anonymous:
		code = codes.Unauthenticated
	}
	st := status.New(code, valid(cut(err.Error(), maxStatusText)))
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: strings.ToUpper(kind.String()), Domain: errorDomain}}
	if violations := errs.ViolationsOf(err); len(violations) > 0 {
		details = append(details, badRequest(violations))
	}
	detailed, derr := st.WithDetails(details...)
	if derr != nil {
		return st.Err() // only a message that cannot be marshalled, which these can
	}
	return detailed.Err()
}

// cut bounds text to n bytes at a character's edge.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return strings.ToValidUTF8(text[:n], "") + "..."
}

// valid makes text that protobuf accepts: a path may hold what a user wrote as a key.
func valid(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }

func badRequest(violations []errs.Violation) *errdetails.BadRequest {
	b := &errdetails.BadRequest{}
	size := 0
	for i, v := range violations {
		fv := &errdetails.BadRequest_FieldViolation{Field: valid(cut(v.Field, maxViolationField)), Description: describe(v)}
		if size += len(fv.Field) + len(fv.Description); size > maxStatusDetails {
			b.FieldViolations = append(b.FieldViolations, &errdetails.BadRequest_FieldViolation{
				Description: "and " + strconv.Itoa(len(violations)-i) + " more",
			})
			break
		}
		b.FieldViolations = append(b.FieldViolations, fv)
	}
	return b
}

// describe puts value and rule into the one text that a field violation has, readable
// as it stands, and readable back: `value "70000": must be ...`.
func describe(v errs.Violation) string {
	rule := valid(cut(v.Rule, maxViolationField))
	if v.Value == "" {
		return rule
	}
	return "value " + strconv.Quote(cut(v.Value, maxViolationField)) + ": " + rule
}

// undescribe is the inverse of describe; a text of another origin is all rule.
func undescribe(text string) (value, rule string) {
	rest, ok := strings.CutPrefix(text, "value ")
	if !ok {
		return "", text
	}
	quoted, err := strconv.QuotedPrefix(rest)
	if err != nil {
		return "", text
	}
	value, err = strconv.Unquote(quoted)
	rule, ok = strings.CutPrefix(rest[len(quoted):], ": ")
	if err != nil || !ok {
		return "", text
	}
	return value, rule
}

// remoteError is a status as it arrived, and the *errs.Error made of it.
type remoteError struct {
	typed *errs.Error
	st    *status.Status
}

// Error is the text that the server's error had.
func (e *remoteError) Error() string { return e.typed.Error() }

// Unwrap gives the *errs.Error.
func (e *remoteError) Unwrap() error { return e.typed }

// GRPCStatus gives the status, for status.FromError.
func (e *remoteError) GRPCStatus() *status.Status { return e.st }

// Is makes an ended context recognisable however it arrived.
func (e *remoteError) Is(target error) bool {
	return (target == context.DeadlineExceeded && e.st.Code() == codes.DeadlineExceeded) ||
		(target == context.Canceled && e.st.Code() == codes.Canceled)
}

// fromStatus is what a client gets for the error of a call: an error that is an
// *errs.Error for errors.As. nil and io.EOF, the end of a stream, stay what they are.
func fromStatus(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	// The status itself, not status.FromError's, which has the words of whatever wraps it: gRPC's own about retries.
	var answer interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &answer) {
		return err
	}
	st := answer.GRPCStatus()
	typed := &errs.Error{Kind: kindOf(st.Code()), Message: st.Message()}
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() == errorDomain {
				typed.Kind = kindOfReason(d.GetReason(), typed.Kind)
			}
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				value, rule := undescribe(v.GetDescription())
				typed.Violations = append(typed.Violations, errs.Violation{Field: v.GetField(), Value: value, Rule: rule})
			}
		}
	}
	// The message holds the violations as text, for clients that read nothing else.
	typed.Message = strings.TrimSuffix(typed.Message, errs.FormatViolations(typed.Violations))
	return &remoteError{typed, st}
}

// kindOfReason reads the ErrorInfo reason that toStatus writes.
func kindOfReason(reason string, otherwise errs.Kind) errs.Kind {
	for kind := range errs.Kind(len(kindCodes)) {
		if strings.ToUpper(kind.String()) == reason {
			return kind
		}
	}
	return otherwise
}
