package ruleset

import (
	"sort"
	"strings"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// operator of a selector requirement, as Kubernetes spells it.
type operator string

const (
	opIn           operator = "In"
	opNotIn        operator = "NotIn"
	opExists       operator = "Exists"
	opDoesNotExist operator = "DoesNotExist"
)

type requirement struct {
	key    string
	op     operator
	values []string // sorted
}

// Selector is a label selector; the zero Selector matches everything.
type Selector struct{ requirements []requirement }

// parseSelector reads a selector that was validated. A requirement with an unknown operator, which validation refuses,
// matches nothing: fail closed.
func parseSelector(s *objectv1.LabelSelector) Selector {
	var sel Selector
	for k, v := range s.GetMatchLabels() {
		sel.requirements = append(sel.requirements, requirement{key: k, op: opIn, values: []string{v}})
	}
	for _, e := range s.GetMatchExpressions() {
		values := append([]string(nil), e.GetValues()...)
		sort.Strings(values)
		sel.requirements = append(sel.requirements, requirement{key: e.GetKey(), op: operator(e.GetOperator()), values: values})
	}
	sort.Slice(sel.requirements, func(i, j int) bool { return sel.requirements[i].String() < sel.requirements[j].String() })
	return sel
}

// Matches says whether a set of labels satisfies every requirement. An absent label satisfies NotIn.
func (s Selector) Matches(labels map[string]string) bool {
	for _, r := range s.requirements {
		if !r.matches(labels) {
			return false
		}
	}
	return true
}

func (r requirement) matches(labels map[string]string) bool {
	value, ok := labels[r.key]
	switch r.op {
	case opIn:
		return ok && contains(r.values, value)
	case opNotIn:
		return !ok || !contains(r.values, value)
	case opExists:
		return ok
	case opDoesNotExist:
		return !ok
	}
	return false
}

func contains(sorted []string, value string) bool {
	i := sort.SearchStrings(sorted, value)
	return i < len(sorted) && sorted[i] == value
}

// String is a canonical form: equal selectors print alike. Label keys and values hold none of the separators.
func (s Selector) String() string {
	parts := make([]string, len(s.requirements))
	for i, r := range s.requirements {
		parts[i] = r.String()
	}
	return "{" + strings.Join(parts, ";") + "}"
}

func (r requirement) String() string {
	return r.key + " " + string(r.op) + " (" + strings.Join(r.values, ",") + ")"
}
