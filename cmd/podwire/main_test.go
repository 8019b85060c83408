package main

import (
	"bytes"
	"strings"
	"testing"

	"podwire.dev/cmd/podwire/internal/session"
)

func TestExitStatuses(t *testing.T) {
	t.Setenv("PODWIRE_STATE", t.TempDir())
	for _, tt := range []struct {
		args   string
		status int
		want   string
	}{
		{"version", session.ExitOK, "podwire "},
		{"--help", session.ExitOK, "Kubernetes networking without Kubernetes"},
		{"serve --help", session.ExitOK, "nodeagent"},
		{"bogus", session.ExitUsage, `unknown command "bogus"`},
		{"up --nodes", session.ExitUsage, "flag needs an argument"},
		{"up here", session.ExitUsage, "see `podwire up --help`"},
		{"up --pods 10.0.0.0", session.ExitUsage, "must be a CIDR"},
		{"down --connect x --identity y", session.ExitUsage, "--connect does not go with it"},
		{"version --connect x", session.ExitUsage, "--connect needs --identity"},
		{"serve", session.ExitUsage, "name one of"},
		{"serve bogus", session.ExitUsage, `no service "bogus"`},
		{"pki token create", session.ExitUsage, "name one of --node and --service"},
		{"pki token create --node A_b", session.ExitUsage, "A_b"},
		{"pki token revoke 0123", session.ExitFailure, "podwire is not up"},
		{"pki init", session.ExitUsage, "accepts 1 arg"},
		{"pki init " + t.TempDir(), session.ExitOK, "tokens.json"},
	} {
		var out bytes.Buffer
		env := &session.Env{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &out}
		err := execute(t.Context(), env, strings.Fields(tt.args))
		if got := session.StatusOf(err); got != tt.status || !strings.Contains(out.String(), tt.want) {
			t.Errorf("podwire %s: status %d, %q; want %d with %q", tt.args, got, out.String(), tt.status, tt.want)
		}
	}
}
