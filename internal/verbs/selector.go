package verbs

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
)

// maxSelector bounds the text of a selector, in bytes.
const maxSelector = 16 << 10

// Selector selects objects by their labels, in the syntax of `kubectl -l`: `a=b`, `a==b`, `a!=b`, `a in (b,c)`,
// `a notin (b,c)`, `a`, `!a`, `a>1`, `a<1`, joined by commas, all of which must hold. The zero Selector selects all.
type Selector struct{ terms []term }

// operator is how a term compares.
type operator int

const (
	in operator = iota
	notIn
	exists
	absent
	greater
	less
)

// term is one condition on one label.
type term struct {
	key    string
	op     operator
	values []string // sorted and unique; one for greater and less, none for exists and absent
	bound  int64    // of greater and less
}

// Everything says that the selector has no condition.
func (s Selector) Everything() bool { return len(s.terms) == 0 }

// Matches says whether an object with these labels is selected.
func (s Selector) Matches(labels map[string]string) bool {
	for _, t := range s.terms {
		if !t.matches(labels) {
			return false
		}
	}
	return true
}

// matches follows Kubernetes: an absent label satisfies `notin` and `!=`.
func (t term) matches(labels map[string]string) bool {
	value, ok := labels[t.key]
	switch t.op {
	case in:
		return ok && slices.Contains(t.values, value)
	case notIn:
		return !ok || !slices.Contains(t.values, value)
	case exists:
		return ok
	case absent:
		return !ok
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if !ok || err != nil {
		return false
	}
	if t.op == greater {
		return n > t.bound
	}
	return n < t.bound
}

// String is the selector in a form that ParseSelector reads back to the same.
func (s Selector) String() string {
	parts := make([]string, len(s.terms))
	for i, t := range s.terms {
		parts[i] = t.String()
	}
	return strings.Join(parts, ",")
}

func (t term) String() string {
	list := "(" + strings.Join(t.values, ",") + ")"
	switch t.op {
	case in:
		return t.key + " in " + list
	case notIn:
		return t.key + " notin " + list
	case exists:
		return t.key
	case absent:
		return "!" + t.key
	case greater:
		return fmt.Sprintf("%s>%d", t.key, t.bound)
	default:
		return fmt.Sprintf("%s<%d", t.key, t.bound)
	}
}

// ParseSelector reads a selector. Empty text selects all. Errors: Invalid, with what was found and what was expected.
func ParseSelector(s string) (Selector, error) {
	sel, err := parseSelector(s)
	if err != nil {
		shown := s
		if len(shown) > 200 {
			shown = shown[:200] + "…"
		}
		return Selector{}, errs.WrapAs(errs.Invalid, err, "label selector %q", shown)
	}
	return sel, nil
}

func parseSelector(s string) (Selector, error) {
	if len(s) > maxSelector {
		return Selector{}, fmt.Errorf("it is %d bytes long, at most %d are allowed", len(s), maxSelector)
	}
	p := &selectorParser{tokens: tokenize(s)}
	var sel Selector
	if p.peek() == "" {
		return sel, nil
	}
	for {
		t, err := p.term()
		if err != nil {
			return Selector{}, err
		}
		sel.terms = append(sel.terms, t)
		switch next := p.next(); next {
		case "":
			return sel, nil
		case ",":
		default:
			return Selector{}, fmt.Errorf("found %q where ',' or the end was expected", next)
		}
	}
}

// symbols end a word.
const symbols = "=!(),<>"

// tokenize cuts the text into words and operators. There is no empty token.
func tokenize(s string) []string {
	var tokens []string
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case isSpace(c):
			i++
		case strings.HasPrefix(s[i:], "==") || strings.HasPrefix(s[i:], "!="):
			tokens = append(tokens, s[i:i+2])
			i += 2
		case strings.IndexByte(symbols, c) >= 0:
			tokens = append(tokens, s[i:i+1])
			i++
		default:
			start := i
			for i < len(s) && !isSpace(s[i]) && strings.IndexByte(symbols, s[i]) < 0 {
				i++
			}
			tokens = append(tokens, s[start:i])
		}
	}
	return tokens
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

func isWordToken(token string) bool { return token != "" && strings.IndexByte(symbols, token[0]) < 0 }

type selectorParser struct{ tokens []string }

// peek is the next token, empty at the end.
func (p *selectorParser) peek() string {
	if len(p.tokens) == 0 {
		return ""
	}
	return p.tokens[0]
}

func (p *selectorParser) next() string {
	token := p.peek()
	if token != "" {
		p.tokens = p.tokens[1:]
	}
	return token
}

func (p *selectorParser) term() (term, error) {
	if p.peek() == "!" {
		p.next()
		key, err := p.key()
		return term{key: key, op: absent}, err
	}
	key, err := p.key()
	if err != nil {
		return term{}, err
	}
	switch token := p.peek(); token {
	case "", ",":
		return term{key: key, op: exists}, nil
	case "=", "==", "!=":
		p.next()
		value, err := p.value()
		t := term{key: key, op: in, values: []string{value}}
		if token == "!=" {
			t.op = notIn
		}
		return t, err
	case "in", "notin":
		p.next()
		values, err := p.set()
		t := term{key: key, op: in, values: values}
		if token == "notin" {
			t.op = notIn
		}
		return t, err
	case "<", ">":
		p.next()
		return p.bound(key, token)
	default:
		return term{}, fmt.Errorf("found %q after %q where one of = == != in notin < > ',' was expected", token, key)
	}
}

func (p *selectorParser) key() (string, error) {
	key := p.next()
	if !isWordToken(key) {
		return "", fmt.Errorf("found %q where a label key was expected", key)
	}
	if rule := names.LabelKey(key); rule != "" {
		return "", fmt.Errorf("label key %q %s", key, rule)
	}
	return key, nil
}

// value reads a value, which may be empty.
func (p *selectorParser) value() (string, error) {
	if !isWordToken(p.peek()) {
		return "", nil
	}
	value := p.next()
	if rule := names.LabelValue(value); rule != "" {
		return "", fmt.Errorf("label value %q %s", value, rule)
	}
	return value, nil
}

// set reads the values of `in` and `notin`. As in Kubernetes, `()` holds the empty value.
func (p *selectorParser) set() ([]string, error) {
	if token := p.next(); token != "(" {
		return nil, fmt.Errorf("found %q where '(' was expected", token)
	}
	var values []string
	for {
		value, err := p.value()
		if err != nil {
			return nil, err
		}
		values = append(values, value)
		switch token := p.next(); token {
		case ")":
			slices.Sort(values)
			return slices.Compact(values), nil
		case ",":
		default:
			return nil, fmt.Errorf("found %q where ',' or ')' was expected", token)
		}
	}
}

func (p *selectorParser) bound(key, op string) (term, error) {
	text := p.next()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return term{}, fmt.Errorf("found %q after %s%s where an integer was expected", text, key, op)
	}
	t := term{key: key, op: greater, bound: n}
	if op == "<" {
		t.op = less
	}
	return t, nil
}
