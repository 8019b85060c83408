package route

import (
	"fmt"
	"regexp"
	"regexp/syntax"
)

// Bounds of compiled regular expressions, in instructions of some 100 bytes: a few letters, as in (x{1000}){1000}, ask for
// any number. What is larger matches nothing.
const (
	maxRegex        = 2000  // of one path
	maxIngressRegex = 50000 // of all paths of an Ingress
)

// compile makes the regular expression of a path, and says how large it is. left is how large it may be.
func compile(path string, left int) (*regexp.Regexp, int, error) {
	pattern := `(?i)^` + path
	tree, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return nil, 0, fmt.Errorf("is not a regular expression (RE2): %w", err)
	}
	size := instructions(tree)
	switch {
	case size > maxRegex:
		return nil, 0, fmt.Errorf("is a regular expression of more than %d instructions once its repetitions are written out", maxRegex)
	case size > left:
		return nil, 0, fmt.Errorf("is one regular expression too many: those of an Ingress have %d instructions at most", maxIngressRegex)
	}
	regex, err := regexp.Compile(pattern)
	if err != nil {
		return nil, 0, fmt.Errorf("is not a regular expression (RE2): %w", err)
	}
	return regex, size, nil
}

// instructions is about how many a tree is compiled to; anything above maxRegex stands for all that is.
func instructions(tree *syntax.Regexp) int {
	size := 1
	for _, sub := range tree.Sub {
		if size += instructions(sub); size > maxRegex {
			return size
		}
	}
	switch tree.Op {
	case syntax.OpLiteral:
		size = len(tree.Rune)
	case syntax.OpCharClass:
		size += len(tree.Rune) / 2
	case syntax.OpRepeat:
		size = 1 + (size-1)*max(tree.Min+1, tree.Max)
	}
	return min(size, maxRegex+1)
}
