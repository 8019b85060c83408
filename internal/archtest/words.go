package archtest

import (
	"go/ast"
	"path"
	"regexp"
	"slices"
	"strings"
)

var wordRules = []Rule{
	{
		Name:  "words",
		Says:  "No file names a path of somebody's machine, or a host that packages are fetched from.",
		Check: forbiddenWords,
	},
	{
		Name:  "unfinished",
		Says:  "Nothing is left to be done later in a comment: it is done, or it is an issue.",
		Check: nothingUnfinished,
	},
	{
		Name:  "doc-paths",
		Says:  "Paths and links in the documentation exist.",
		Check: docPathsExist,
	},
	{
		Name:  "doc-targets",
		Says:  "Make targets in the documentation exist.",
		Check: docTargetsExist,
	},
	{
		Name:  "stamp",
		Says:  "The variable that the build stamps with the version exists: the linker ignores one that does not.",
		Check: stampExists,
	},
}

// notForUs are directories of somebody's machine and hosts that packages come from: a manager of packages knows its own.
var notForUs = regexp.MustCompile(`(?:^|[\s"'=(:])(/(?:home|Users|root|work|workspace)/[\w.-]+)|\b((?:proxy|sum|deb|archive|mirror)\.[a-z0-9-]+\.(?:org|com|net|io))\b`)

func forbiddenWords(t *Tree, _ *Layout) Result {
	var c collector
	for _, text := range t.Texts {
		c.Subjects++
		for i, line := range strings.Split(text.Content, "\n") {
			for _, found := range notForUs.FindAllStringSubmatch(line, -1) {
				c.line(text.Path, i+1, "names %q, which means something on one machine only", found[1]+found[2])
			}
		}
	}
	return c.Result
}

func (c *collector) line(path string, line int, format string, args ...any) {
	c.in(path, format, args...)
	c.Findings[len(c.Findings)-1].Line = line
}

var unfinished = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b`)

func nothingUnfinished(t *Tree, _ *Layout) Result {
	var c collector
	goFiles := map[string]*File{}
	for _, p := range t.Packages {
		for _, f := range p.Files {
			goFiles[f.Path] = f
		}
	}
	for _, text := range t.Texts {
		f := goFiles[text.Path]
		switch {
		case f != nil && f.Generated, path.Base(text.Path) == "LICENSE", strings.HasSuffix(text.Path, ".sum"):
			continue
		case f != nil:
			c.Subjects++
			for _, group := range f.Syntax.Comments {
				for _, comment := range group.List {
					if word := unfinished.FindString(comment.Text); word != "" {
						c.at(f, f.Line(comment), f.enclosing(comment), "%s in a comment: do it, or open an issue", word)
					}
				}
			}
			forbidUses(&c, f, "context", []string{"TO" + "DO"}, "pass the caller's context")
		default:
			c.Subjects++
			for i, line := range strings.Split(text.Content, "\n") {
				if word := unfinished.FindString(line); word != "" {
					c.line(text.Path, i+1, "%s: do it, or open an issue", word)
				}
			}
		}
	}
	return c.Result
}

// repoPath matches a path of this repository in running text. The tree's first level anchors it.
var repoPath = regexp.MustCompile("(?:^|[\\s`(\"'\\[=])(?:\\./)?" +
	"((?:bench|cmd|deploy|docs|internal|proto|scripts|services|test|tools|\\.ci)/[A-Za-z0-9_./*{},<>…-]*)")

var (
	markdownLink = regexp.MustCompile(`\]\(([^)#:\s]+)(?:#[^)]*)?\)`)
	alternatives = regexp.MustCompile(`\{([^{}]*)\}`)
	placeholder  = regexp.MustCompile(`<[^>]*>|…`)
	symbol       = regexp.MustCompile(`\.[A-Z]\w*(\.\w+)?$`)
)

func docPathsExist(t *Tree, _ *Layout) Result {
	var c collector
	for _, text := range documents(t) {
		for i, line := range strings.Split(text.Content, "\n") {
			// A link is relative to its own file, so it is no path of the repository.
			for _, match := range repoPath.FindAllStringSubmatch(markdownLink.ReplaceAllString(line, "]"), -1) {
				for _, name := range expand(match[1]) {
					c.Subjects++
					if !mentioned(t, name) {
						c.line(text.Path, i+1, "mentions %s, which does not exist", name)
					}
				}
			}
			for _, match := range markdownLink.FindAllStringSubmatch(line, -1) {
				c.Subjects++
				if !t.Exists(path.Join(path.Dir(text.Path), match[1])) {
					c.line(text.Path, i+1, "links to %s, which does not exist", match[1])
				}
			}
		}
	}
	return c.Result
}

func documents(t *Tree) []*Text {
	return slices.DeleteFunc(slices.Clone(t.Texts), func(text *Text) bool {
		return path.Ext(text.Path) != ".md" || inTestdata(text.Path)
	})
}

// expand turns a path as people write it into patterns for Glob: {a,b} becomes two paths, <name> and … any element.
func expand(written string) []string {
	written = strings.TrimSuffix(written, "/...")
	written = strings.TrimRight(written, ".,/")
	if at := alternatives.FindStringSubmatchIndex(written); at != nil {
		var out []string
		for _, choice := range strings.Split(written[at[2]:at[3]], ",") {
			out = append(out, expand(written[:at[0]]+strings.TrimSpace(choice)+written[at[1]:])...)
		}
		return out
	}
	return []string{placeholder.ReplaceAllString(written, "*")}
}

// mentioned reports whether a pattern names something: a file, a directory, or a symbol of a package (internal/errs.Kind).
func mentioned(t *Tree, pattern string) bool {
	if len(t.Glob(pattern)) > 0 {
		return true
	}
	trimmed := symbol.ReplaceAllString(pattern, "")
	return trimmed != pattern && len(t.Glob(trimmed)) > 0
}

var (
	makeTarget    = regexp.MustCompile(`(?m)^([a-z][a-z0-9-]*):(?:[^=]|$)`)
	codeSpan      = regexp.MustCompile("`([^`\n]+)`")
	makeMentioned = regexp.MustCompile(`(?:^|[\s;&|$])make((?: +[a-z][a-z0-9-]*)+)`)
)

func docTargetsExist(t *Tree, _ *Layout) Result {
	var c collector
	targets := map[string]bool{}
	for _, match := range makeTarget.FindAllStringSubmatch(t.Text("Makefile"), -1) {
		targets[match[1]] = true
	}
	for _, text := range documents(t) {
		for i, code := range codeLines(text.Content) {
			for _, match := range makeMentioned.FindAllStringSubmatch(code, -1) {
				for _, target := range strings.Fields(match[1]) {
					c.Subjects++
					if !targets[target] {
						c.line(text.Path, i+1, "mentions `make %s`, which the Makefile does not have", target)
					}
				}
			}
		}
	}
	return c.Result
}

// codeLines returns, for each line of a Markdown text, what of it is code: a fenced or indented line without its
// comment, or the code spans.
func codeLines(content string) []string {
	lines := strings.Split(content, "\n")
	fenced := false
	for i, line := range lines {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
			lines[i] = ""
			continue
		}
		if fenced || strings.HasPrefix(line, "    ") {
			command, _, _ := strings.Cut(strings.TrimLeft(line, " "), " #")
			lines[i], _, _ = strings.Cut(command, "  ")
			continue
		}
		var spans []string
		for _, match := range codeSpan.FindAllStringSubmatch(line, -1) {
			spans = append(spans, match[1])
		}
		lines[i] = strings.Join(spans, "; ")
	}
	return lines
}

var stampLine = regexp.MustCompile(`(?m)^VERSION_VARIABLE := (\S+)\.(\w+)$`)

func stampExists(t *Tree, l *Layout) Result {
	var c collector
	match := stampLine.FindStringSubmatch(t.Text(l.StampFile))
	if match == nil {
		return c.Result
	}
	c.Subjects++
	dir, _ := ours(l, match[1])
	for _, p := range t.Packages {
		if p.Dir != dir {
			continue
		}
		for _, f := range p.Written() {
			if object := f.Syntax.Scope.Lookup(match[2]); object != nil && object.Kind == ast.Var {
				return c.Result
			}
		}
	}
	c.in(l.StampFile, "stamps %s.%s, but no such variable exists", match[1], match[2])
	return c.Result
}
