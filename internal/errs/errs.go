// Package errs is the one typed error of Podwire. It crosses every internal
// boundary and, through internal/rpc, the wire.
//
// In: a kind that says what the caller can do about the failure, a message that
// says what failed and where, and, for bad input, one violation per offending
// field. Out: a Go error whose text is readable on a terminal as it stands.
//
// Invariants: the package is pure (text and errors only). Wrapping keeps the kind
// and the violations of what is wrapped, also through fmt.Errorf("...: %w") and
// errors.Join. It must not know of gRPC, contexts or logging.
package errs

import (
	"errors"
	"fmt"
	"strings"
)

// Kind says what a caller can do about an error. The zero value is Internal: an
// error nobody classified is our fault until somebody says otherwise.
type Kind int8

// The kinds, with the gRPC code that internal/rpc gives each of them.
const (
	// Internal is a broken invariant or an unclassified failure (INTERNAL).
	Internal Kind = iota
	// Invalid is input that is wrong whatever the state is (INVALID_ARGUMENT).
	Invalid
	// NotFound is a named thing that does not exist (NOT_FOUND).
	NotFound
	// Exists is a thing that was to be created and is there already (ALREADY_EXISTS).
	Exists
	// Conflict is a lost compare-and-swap: read again, then retry (ABORTED).
	Conflict
	// Exhausted is a pool, quota or limit that has nothing left (RESOURCE_EXHAUSTED).
	Exhausted
	// Unavailable is a dependency that does not answer: retry later (UNAVAILABLE).
	Unavailable
	// Denied is a caller that may not do this (PERMISSION_DENIED).
	Denied
	// OutOfRange is a place in a history that is no longer kept: list again and go on
	// from there (OUT_OF_RANGE).
	OutOfRange
)

var kindNames = [...]string{
	Internal: "Internal", Invalid: "Invalid", NotFound: "NotFound", Exists: "Exists",
	Conflict: "Conflict", Exhausted: "Exhausted", Unavailable: "Unavailable", Denied: "Denied",
	OutOfRange: "OutOfRange",
}

// String is the name of the constant.
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return fmt.Sprintf("Kind(%d)", int8(k))
	}
	return kindNames[k]
}

// ParseKind is the inverse of Kind.String.
func ParseKind(s string) (Kind, bool) {
	for k, name := range kindNames {
		if name == s {
			return Kind(k), true
		}
	}
	return Internal, false
}

// Violation is one field that breaks one rule.
type Violation struct {
	// Field is the Kubernetes field path, such as spec.ports[0].port.
	Field string
	// Value is the offending value as the user wrote it; empty if it is absent.
	Value string
	// Rule is what the value has to satisfy, such as "must be between 1 and 65535".
	Rule string
}

// String is one line: field, value if there is one, and the rule.
func (v Violation) String() string {
	var b strings.Builder
	if v.Field != "" {
		b.WriteString(v.Field)
		b.WriteString(": ")
	}
	if v.Value != "" {
		fmt.Fprintf(&b, "%q: ", v.Value)
	}
	b.WriteString(v.Rule)
	return b.String()
}

// Error is the typed error. Its text is Message, then the text of Err, then each
// violation on a line of its own.
type Error struct {
	Kind       Kind
	Message    string
	Violations []Violation
	Err        error
}

// Error is the text for people; see Error (the type) for its shape.
func (e *Error) Error() string {
	text := e.Message
	if e.Err != nil {
		text = join(text, e.Err.Error())
	}
	return text + FormatViolations(e.Violations)
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + ": " + b
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// FormatViolations is the block that follows a message: a line break, two spaces
// and Violation.String per violation; empty for none.
func FormatViolations(vs []Violation) string {
	var b strings.Builder
	for _, v := range vs {
		b.WriteString("\n  ")
		b.WriteString(v.String())
	}
	return b.String()
}

// New makes an error of a kind. The message says what failed, where, and what to do.
func New(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// Wrap puts the noun in front of err and keeps its kind. Wrap(nil) is nil.
func Wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: KindOf(err), Message: fmt.Sprintf(format, args...), Err: err}
}

// WrapAs is Wrap for an error from outside, whose kind only the caller knows.
func WrapAs(kind Kind, err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...), Err: err}
}

// InvalidFields is the error for input whose fields break rules; nil if none does,
// so that a validator can end with it. The noun names the object: "Pod default/web".
func InvalidFields(noun string, violations []Violation) error {
	if len(violations) == 0 {
		return nil
	}
	return &Error{
		Kind:       Invalid,
		Message:    noun + " is invalid:",
		Violations: append([]Violation(nil), violations...),
	}
}

// KindOf is the kind of the outermost *Error in err's tree, Internal if there is
// none. It has no meaning for a nil error, for which it returns Internal too.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Is says whether err is an error of the kind; false for nil.
func Is(err error, kind Kind) bool {
	return err != nil && KindOf(err) == kind
}

// ViolationsOf collects the violations of every *Error in err's tree, outermost
// first, in their order.
func ViolationsOf(err error) []Violation {
	var out []Violation
	for err != nil {
		if e, ok := err.(*Error); ok { //nolint:errorlint // this walks the chain itself
			out = append(out, e.Violations...)
		}
		switch u := err.(type) { //nolint:errorlint // as above
		case interface{ Unwrap() []error }:
			for _, sub := range u.Unwrap() {
				out = append(out, ViolationsOf(sub)...)
			}
			return out
		case interface{ Unwrap() error }:
			err = u.Unwrap()
		default:
			return out
		}
	}
	return out
}
