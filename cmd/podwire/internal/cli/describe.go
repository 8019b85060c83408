package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"podwire.dev/cmd/podwire/internal/cli/describe"
	"podwire.dev/cmd/podwire/internal/cli/objects"
	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/manifest"
)

func (a *app) describeCommand() *cobra.Command {
	var o getOptions
	cmd := &cobra.Command{
		Use:   "describe KIND[,KIND...] [NAME...] | KIND/NAME...",
		Short: "show objects for people, with what they come to and what about them cannot work",
		Long: "Shows objects as kubectl describe does, with their neighbours: a Service's endpoints, a Pod's policies, an Ingress' backends.\n" +
			"Warnings name references that lead nowhere, and why a Service has no endpoints. No value of a Secret is shown.",
		Args: cobra.MinimumNArgs(1),
	}
	namespaceFlag(cmd, &o.namespace)
	cmd.Flags().BoolVarP(&o.all, "all-namespaces", "A", false, "of every namespace")
	cmd.Flags().StringVarP(&o.selector, "selector", "l", "", "label selector, such as app=web,tier!=db")
	cmd.RunE = a.traced("describe", func(ctx context.Context, args []string) error { return a.describe(ctx, o, args) })
	return cmd
}

func (a *app) describe(ctx context.Context, o getOptions, args []string) error {
	what, err := a.wanted(args)
	if err != nil {
		return err
	}
	named := slices.ContainsFunc(what, func(w wanted) bool { return len(w.names) > 0 })
	if named && (o.all || o.selector != "") {
		return session.Usage("a name goes neither with -A nor with -l")
	}
	c := a.connections()
	defer c.close()
	reading, cancel := bound(ctx)
	all, missing, err := a.collectObjects(reading, c, what, o)
	cancel()
	if err != nil {
		return err
	}
	around := &neighbours{client: c.objects(), kinds: a.kinds}
	first := true
	for _, f := range all {
		for _, m := range f.list {
			if !first {
				fmt.Fprint(a.out, "\n\n")
			}
			first = false
			if err := describe.Write(ctx, a.out, around, m); err != nil {
				return errs.WrapAs(errs.Internal, err, "describe")
			}
		}
	}
	if first && len(missing) == 0 {
		return a.tables(all, o)
	}
	return errors.Join(missing...)
}

// neighbourTimeout bounds one read around an object: a service that is away must not hold up what the others say.
const neighbourTimeout = 3 * time.Second

// neighbours implements describe.Reader.
type neighbours struct {
	client *objects.Client
	kinds  *manifest.Registry
}

func (n *neighbours) kind(name string) (manifest.Kind, error) {
	k, ok := n.kinds.ByName(name)
	if !ok {
		return k, errs.New(errs.Internal, "describe: there is no kind %s", name)
	}
	return k, nil
}

func (n *neighbours) Get(ctx context.Context, kind, namespace, name string) (manifest.Message, error) {
	k, err := n.kind(kind)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, neighbourTimeout)
	defer cancel()
	return n.client.Get(ctx, k, namespace, name)
}

func (n *neighbours) List(ctx context.Context, kind, namespace string) ([]manifest.Message, error) {
	k, err := n.kind(kind)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, neighbourTimeout)
	defer cancel()
	list, _, err := n.client.List(ctx, k, objects.Selection{Namespace: namespace, AllNamespaces: namespace == ""})
	return list, err
}

// completionTimeout bounds what the shell waits for when a key is pressed.
const completionTimeout = 2 * time.Second

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "print a script that completes commands, kinds and names in a shell",
		Long: "Prints the script for a shell, such as\n\n" +
			"  source <(podwire completion bash)\n  podwire completion zsh > \"${fpath[1]}/_podwire\"\n" +
			"  podwire completion fish | source\n  podwire completion powershell | Out-String | Invoke-Expression\n\n" +
			"Names are those of the instance that --state, --connect or the environment name.",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			var err error
			switch args[0] {
			case "bash":
				err = root.GenBashCompletionV2(a.out, true)
			case "zsh":
				err = root.GenZshCompletion(a.out)
			case "fish":
				err = root.GenFishCompletion(a.out, true)
			case "powershell":
				err = root.GenPowerShellCompletionWithDesc(a.out)
			}
			return errs.WrapAs(errs.Internal, err, "completion")
		},
	}
}

// completeObjects completes KIND NAME... and KIND/NAME... .
func (a *app) completeObjects(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if kind, name, ok := strings.Cut(begun, "/"); ok {
		k, err := a.kind(kind)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, n := range a.namesBegun(cmd, k, name) {
			out = append(out, kind+"/"+n)
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
	if len(args) == 0 {
		var out []string
		for _, k := range a.kinds.Kinds() {
			if strings.HasPrefix(k.Plural, strings.ToLower(begun)) {
				out = append(out, k.Plural)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
	if strings.Contains(args[0], "/") || strings.Contains(args[0], ",") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	k, err := a.kind(args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := slices.DeleteFunc(a.namesBegun(cmd, k, begun), func(n string) bool { return slices.Contains(args[1:], n) })
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeReference completes KIND/NAME.
func (a *app) completeReference(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if strings.Contains(begun, "/") {
		return a.completeObjects(cmd, args, begun)
	}
	var out []string
	for _, k := range a.kinds.Kinds() {
		if strings.HasPrefix(k.Singular, strings.ToLower(begun)) {
			out = append(out, k.Singular+"/")
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// completeName completes the first argument, or a flag, with the names of a kind.
func (a *app) completeName(kind string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		k, err := a.kind(kind)
		if err != nil || len(args) > 0 && k.Scope == manifest.Namespaced {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return a.namesBegun(cmd, k, begun), cobra.ShellCompDirectiveNoFileComp
	}
}

// namesBegun are the names of a kind that begin as the user did, in the namespace of -n. A cluster that does not answer
// has none: completion says nothing of errors.
func (a *app) namesBegun(cmd *cobra.Command, k manifest.Kind, begun string) []string {
	namespace := ""
	if f := cmd.Flags().Lookup("namespace"); f != nil {
		namespace = f.Value.String()
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	c := a.connections()
	defer c.close()
	list, _, err := c.objects().List(ctx, k, objects.Selection{Namespace: namespaceOf(k, namespace)})
	if err != nil {
		return nil
	}
	var out []string
	for _, m := range list {
		if name := m.GetMetadata().GetName(); strings.HasPrefix(name, begun) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// completions tells the shell what the commands take: kinds, names, namespaces, nodes and formats.
func (a *app) completions(commands []*cobra.Command) []*cobra.Command {
	arguments := map[string]cobra.CompletionFunc{
		"get": a.completeObjects, "describe": a.completeObjects, "delete": a.completeObjects,
		"wait": a.completeReference, "trace": a.completeReference,
		"exec": a.completeName("pod"), "logs": a.completeName("pod"), "accept": a.completeName("node"),
	}
	flags := map[string]cobra.CompletionFunc{
		"namespace": a.completeName("namespace"), "node": a.completeName("node"),
	}
	outputs := map[string][]cobra.Completion{"get": {"wide", "yaml", "json", "name"}}
	for _, cmd := range commands {
		if complete := arguments[cmd.Name()]; complete != nil {
			cmd.ValidArgsFunction = complete
		}
		for name, complete := range flags {
			if cmd.Flags().Lookup(name) != nil {
				// It fails only for a flag that is not there, or that is completed already.
				_ = cmd.RegisterFlagCompletionFunc(name, complete)
			}
		}
		if cmd.Flags().Lookup("output") != nil {
			values := outputs[cmd.Name()]
			if values == nil {
				values = []cobra.Completion{"json"}
			}
			_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
		}
	}
	return commands
}
