// Package doctor is `podwire doctor`: what of this machine would keep Podwire from working, found out before it does.
//
// In: the machine as it is. Out: one finding per question, each with what to do about it; an error where something
// would not work. The kernel is not asked for its version but tried: namespaces are made, everything that an agent does
// to a kernel is done to them once, and they are removed. Invariants: nothing of the machine itself is changed, and
// nothing remains. The package must not need a running Podwire.
package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/internal/errs"
)

// Verdict says how bad a finding is.
type Verdict string

// The verdicts.
const (
	// OK needs nothing.
	OK Verdict = "ok"
	// Note is worth knowing.
	Note Verdict = "note"
	// Problem is something that would not work.
	Problem Verdict = "problem"
)

// Finding is the answer to one question.
type Finding struct {
	// Area is what it is about: "machine", "kernel", "network", "firewall", "limits", "podwire", "docker".
	Area string `json:"area"`
	// Name says what was looked at.
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	// Detail is what was found.
	Detail string `json:"detail,omitempty"`
	// Advice says what to do; empty where nothing is to be done.
	Advice string `json:"advice,omitempty"`
}

// report collects findings.
type report struct{ findings []Finding }

func (r *report) ok(area, name, detail string) {
	r.findings = append(r.findings, Finding{Area: area, Name: name, Verdict: OK, Detail: detail})
}

func (r *report) note(area, name, detail, advice string) {
	r.findings = append(r.findings, Finding{Area: area, Name: name, Verdict: Note, Detail: detail, Advice: advice})
}

func (r *report) problem(area, name, detail, advice string) {
	r.findings = append(r.findings, Finding{Area: area, Name: name, Verdict: Problem, Detail: detail, Advice: advice})
}

func (r *report) problems() int {
	n := 0
	for _, f := range r.findings {
		if f.Verdict == Problem {
			n++
		}
	}
	return n
}

// Command is `podwire doctor`.
func Command(env *session.Env) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "find out what of this machine would keep Podwire from working",
		Long: "Looks at this machine and says what would not work, and what to do about it: the kernel's abilities (tried out in\n" +
			"namespaces made for that), firewalls of other programs, ranges that overlap with routes, ports, limits, Docker.\n" +
			"Nothing of the machine is changed. Exits 1 if something would not work.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return session.Usage("doctor: -o %s: must be json", output)
			}
			dir, err := env.Dir()
			if err != nil {
				return err
			}
			r := &report{}
			machine{root: "/", state: dir}.examine(cmd.Context(), r)
			if err := r.print(env.Stdout, output); err != nil {
				return errs.WrapAs(errs.Internal, err, "print")
			}
			if n := r.problems(); n > 0 {
				return errs.New(errs.Unavailable, "doctor: %d of %d findings are problems", n, len(r.findings))
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json prints the findings for programs")
	return cmd
}

// examine asks every question.
func (m machine) examine(ctx context.Context, r *report) {
	m.privileges(r)
	m.kernel(ctx, r)
	m.overlaps(r)
	m.addressing(r)
	m.ports(r)
	m.settings(r)
	m.limits(r)
	m.leftovers(r)
	m.docker(ctx, r)
}

func (r *report) print(w io.Writer, output string) error {
	if output == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(map[string][]Finding{"findings": r.findings})
	}
	var text strings.Builder
	area := ""
	for _, f := range r.findings {
		if f.Area != area {
			area = f.Area
			fmt.Fprintln(&text, area)
		}
		fmt.Fprintf(&text, "  %-8s %s", f.Verdict, f.Name)
		if f.Detail != "" {
			fmt.Fprintf(&text, ": %s", f.Detail)
		}
		fmt.Fprintln(&text)
		if f.Advice != "" {
			fmt.Fprintf(&text, "           %s\n", f.Advice)
		}
	}
	_, err := io.WriteString(w, text.String())
	return err
}
