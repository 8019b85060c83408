package up

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"podwire.dev/cmd/podwire/internal/session"
	"podwire.dev/internal/errs"
	"podwire.dev/internal/pki"
	clusterv1 "podwire.dev/proto/podwire/cluster/v1"
)

func pkiCommand(env *session.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pki",
		Short: "make the certificate authority, and join tokens",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return session.Usage("pki: want init or token") },
	}
	token := &cobra.Command{
		Use:   "token",
		Short: "make and revoke join tokens",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return session.Usage("pki token: want create or revoke") },
	}
	token.AddCommand(tokenCreateCommand(env), tokenRevokeCommand(env))
	cmd.AddCommand(pkiInitCommand(env), token)
	return cmd
}

func pkiInitCommand(env *session.Env) *cobra.Command {
	var plan pki.Plan
	var handOut string
	cmd := &cobra.Command{
		Use:   "init DIR",
		Short: "make the CA, the leaves of etcd, cluster and user/admin, and the first join tokens",
		Long: "Makes in DIR what a cluster starts from. What is there already is checked and left as it is, so it may be repeated,\n" +
			"also with more services or nodes. --hand-out gives each of them a directory of its own with what its join takes, so that\n" +
			"nobody but cluster needs to see DIR.",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			result, err := pki.Init(args[0], plan)
			if err != nil {
				return err
			}
			if result.Unchanged() {
				fmt.Fprintf(env.Stdout, "%s: everything was there already; nothing changed\n", args[0])
			}
			for _, file := range result.Created {
				fmt.Fprintln(env.Stdout, file)
			}
			if handOut == "" {
				return nil
			}
			given, err := pki.HandOut(args[0], handOut, plan)
			for _, file := range given.Created {
				fmt.Fprintln(env.Stdout, filepath.Join(handOut, file))
			}
			return err
		},
	}
	cmd.Flags().StringSliceVar(&plan.Services, "service", serviceNames()[joiners:], "`NAMES` of services that get a join token")
	cmd.Flags().StringSliceVar(&plan.Nodes, "node", nil, "`NAMES` of nodes that get a join token")
	cmd.Flags().StringVar(&handOut, "hand-out", "", "`DIR` for a directory per service and node, with ca.crt and token")
	return cmd
}

func tokenCreateCommand(env *session.Env) *cobra.Command {
	var node, service string
	var lifetime time.Duration
	cmd := &cobra.Command{
		Use:   "create --node NAME | --service NAME",
		Short: "make a join token and print it; it is shown this once",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			id := pki.Node(node)
			if service != "" {
				id = pki.Service(service)
			}
			if (node == "") == (service == "") {
				return session.Usage("pki token create: name one of --node and --service")
			}
			if err := id.Validate(); err != nil {
				return &session.Exit{Status: session.ExitUsage, Err: err}
			}
			if lifetime < time.Second {
				return session.Usage("pki token create: --lifetime: must be at least 1s")
			}
			conn, err := env.Dial(cmd.Context(), "cluster")
			if err != nil {
				return err
			}
			defer conn.Close()
			resp, err := clusterv1.NewEnrolmentServiceClient(conn).CreateToken(cmd.Context(), &clusterv1.CreateTokenRequest{
				IdentityKind: string(id.Kind), IdentityName: id.Name, LifetimeSeconds: int64(lifetime / time.Second),
			})
			if err != nil {
				return errs.Wrap(err, "create token")
			}
			fmt.Fprintln(env.Stdout, resp.GetToken())
			return nil
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "`NAME` of the node that may join with it, once")
	cmd.Flags().StringVar(&service, "service", "", "`NAME` of the service whose replicas may join with it")
	cmd.Flags().DurationVar(&lifetime, "lifetime", 24*time.Hour, "how long the token works")
	return cmd
}

func tokenRevokeCommand(env *session.Env) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "make a join token useless; ID is its middle part (or the whole token)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := args[0]
			if whole, err := pki.TokenID(id); err == nil {
				id = whole
			}
			conn, err := env.Dial(cmd.Context(), "cluster")
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = clusterv1.NewEnrolmentServiceClient(conn).RevokeToken(cmd.Context(), &clusterv1.RevokeTokenRequest{TokenId: id})
			if err != nil {
				return errs.Wrap(err, "revoke token %s", id)
			}
			fmt.Fprintf(env.Stdout, "token %s revoked; certificates that it bought stay valid until they expire\n", id)
			return nil
		},
	}
}
