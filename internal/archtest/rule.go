package archtest

import (
	"fmt"
	"sort"
	"strings"
)

// Rule is one convention of the house.
type Rule struct {
	// Name is how exceptions and samples refer to it.
	Name string
	// Says is the convention in a sentence.
	Says string
	// Check looks at a whole tree.
	Check func(*Tree, *Layout) Result
}

// Result is what a rule saw.
type Result struct {
	// Subjects counts what the rule judged. A rule without subjects proves nothing.
	Subjects int
	Findings []Finding
}

// Finding is one place that breaks a rule.
type Finding struct {
	// Path of the file or directory, relative to the root.
	Path string
	// Line in the file; 0 where the whole file or directory is meant.
	Line int
	// Decl is the top-level function around it ("Hub.Run"), or "".
	Decl string
	// Message says what is wrong and what to do.
	Message string
}

func (f Finding) String() string {
	if f.Line == 0 {
		return f.Path + ": " + f.Message
	}
	return fmt.Sprintf("%s:%d: %s", f.Path, f.Line, f.Message)
}

// Exception excuses the findings of one rule in one place.
type Exception struct {
	Rule string
	// Where is a file or directory, and everything below it; "file.go#Hub.Run" narrows it to one function.
	Where string
	// Reason says why the rule does not fit there.
	Reason string
}

func (e Exception) covers(f Finding) bool {
	place, decl, narrowed := strings.Cut(e.Where, "#")
	return below(f.Path, place) && (!narrowed || decl == f.Decl)
}

// Judge runs one rule and takes away what the exceptions excuse. A rule without subjects, an exception without a
// reason and an exception that excuses nothing are findings too.
func Judge(rule Rule, t *Tree, l *Layout, exceptions []Exception) []Finding {
	result := rule.Check(t, l)
	var left []Finding
	if result.Subjects == 0 {
		left = append(left, Finding{Path: ".", Message: "the rule found nothing to judge: it would pass on anything"})
	}
	used := make([]bool, len(exceptions))
findings:
	for _, finding := range result.Findings {
		for i, exception := range exceptions {
			if exception.Rule == rule.Name && exception.covers(finding) {
				used[i] = true
				continue findings
			}
		}
		left = append(left, finding)
	}
	for i, exception := range exceptions {
		if exception.Rule != rule.Name {
			continue
		}
		if !used[i] {
			left = append(left, Finding{Path: exception.Where, Message: "the exception excuses nothing any more: delete it"})
		}
		if len(strings.Fields(exception.Reason)) < 3 {
			left = append(left, Finding{Path: exception.Where, Message: "the exception gives no reason"})
		}
	}
	sort.SliceStable(left, func(i, j int) bool {
		if left[i].Path != left[j].Path {
			return left[i].Path < left[j].Path
		}
		return left[i].Line < left[j].Line
	})
	return left
}

// collector gathers a Result.
type collector struct {
	Result
}

func (c *collector) at(f *File, line int, decl, format string, args ...any) {
	c.Findings = append(c.Findings, Finding{Path: f.Path, Line: line, Decl: decl, Message: fmt.Sprintf(format, args...)})
}

func (c *collector) in(path, format string, args ...any) {
	c.Findings = append(c.Findings, Finding{Path: path, Message: fmt.Sprintf(format, args...)})
}
