package manifest

import (
	"fmt"
	"strings"

	"podwire.dev/internal/errs"
)

// Problem is one mistake in a manifest.
type Problem struct {
	// Pos is where it is.
	Pos Position
	// Object names the object for people; empty before its kind is known.
	Object string
	// Violation says which field breaks which rule.
	errs.Violation
}

// String is one line: place, object, field, value, rule.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.Pos.String())
	b.WriteString(": ")
	if p.Object != "" {
		b.WriteString(p.Object)
		b.WriteString(": ")
	}
	b.WriteString(p.Violation.String())
	return b.String()
}

// Error is what Parse returns: every mistake of a source, in the order of the
// text. It is an errs.Invalid with one violation per problem.
type Error struct {
	// Problems has at least one entry.
	Problems []Problem
	// More counts the problems past the limit that were left out.
	More int
}

// Error has one line per problem.
func (e *Error) Error() string {
	lines := make([]string, 0, len(e.Problems)+1)
	for _, p := range e.Problems {
		lines = append(lines, p.String())
	}
	if e.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", e.More))
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the error in the form that errs knows.
func (e *Error) Unwrap() error {
	vs := make([]errs.Violation, len(e.Problems))
	for i, p := range e.Problems {
		vs[i] = p.Violation
	}
	return &errs.Error{Kind: errs.Invalid, Message: "manifest", Violations: vs}
}

// Place puts the violations that a service found in the object at their lines of
// the source; nil if there are none.
func (o Object) Place(violations []errs.Violation) error {
	if len(violations) == 0 {
		return nil
	}
	e := &Error{}
	for _, v := range violations {
		e.Problems = append(e.Problems, Problem{Pos: o.Locate(v.Field), Object: o.String(), Violation: v})
	}
	return e
}
