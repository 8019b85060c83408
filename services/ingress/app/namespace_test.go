package app_test

import (
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podwire.dev/internal/pki"
	"podwire.dev/internal/seal"
	"podwire.dev/internal/store"
	ingressv1 "podwire.dev/proto/podwire/ingress/v1"
	objectv1 "podwire.dev/proto/podwire/object/v1"
	"podwire.dev/services/ingress/app"
	"podwire.dev/services/ingress/internal/planner"
)

// TestNamespaceEnds finds Ingresses and Secrets deleted when their Namespace is Terminating.
func TestNamespaceEnds(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.Put(planner.KindNamespace, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "brief"}})
	user := s.Dial(pki.User("alice"))
	ingresses, secrets := ingressv1.NewIngressServiceClient(user), ingressv1.NewSecretServiceClient(user)
	for _, ns := range []string{"brief", "default"} {
		in := ingressOf(t, "minimal-ingress.yaml")
		in.Metadata.Namespace = ns
		if _, err := ingresses.Apply(s.Ctx, &ingressv1.IngressServiceApplyRequest{Object: in}, grpc.WaitForReady(true)); err != nil {
			t.Fatal(err)
		}
		if _, err := secrets.Apply(s.Ctx, &ingressv1.SecretServiceApplyRequest{Object: &objectv1.Secret{
			Metadata: &objectv1.ObjectMeta{Namespace: ns, Name: "s"}, Data: map[string][]byte{"k": []byte("v")},
		}}); err != nil {
			t.Fatal(err)
		}
	}
	s.Passed(s.Put(planner.KindNamespace, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "brief", DeletionTimestamp: timestamppb.Now()}}))
	for ns, want := range map[string]codes.Code{"brief": codes.NotFound, "default": codes.OK} {
		if _, err := ingresses.Get(s.Ctx, &ingressv1.IngressServiceGetRequest{Namespace: ns, Name: "minimal-ingress"}); status.Code(err) != want {
			t.Errorf("%s: the Ingress: %v, want %s", ns, err, want)
		}
		if _, err := secrets.Get(s.Ctx, &ingressv1.SecretServiceGetRequest{Namespace: ns, Name: "s"}); status.Code(err) != want {
			t.Errorf("%s: the Secret: %v, want %s", ns, err, want)
		}
	}
}

// TestSecretsThatDoNotOpenEndWithTheirNamespace: nobody sees them, and still they do not stay.
func TestSecretsThatDoNotOpenEndWithTheirNamespace(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	ring, err := seal.NewKeyring(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	lost := s.Fake.Another(app.Kinds(), store.WithKeys(ring))
	for _, ns := range []string{"brief", "default"} {
		s.Put(planner.KindNamespace, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: ns}})
		o := &objectv1.Secret{Metadata: &objectv1.ObjectMeta{Namespace: ns, Name: "s"}, Data: map[string][]byte{"k": []byte("v")}}
		if _, err := lost.Txn().Create(o, store.SecretKind).Commit(s.Ctx); err != nil {
			t.Fatal(err)
		}
	}
	at := s.Put(planner.KindNamespace, &objectv1.Namespace{Metadata: &objectv1.ObjectMeta{Name: "brief", DeletionTimestamp: timestamppb.Now()}})
	// The watch of one kind does not tell the cause of a deletion.
	for batch, err := range lost.Watch(s.Ctx, store.WatchQuery{From: at + 1}) {
		if err != nil {
			t.Fatalf("the Secret stays: %v", err)
		}
		i := slices.IndexFunc(batch.Events, func(ev store.Event) bool { return ev.Type == store.Deleted })
		if i < 0 {
			continue
		}
		if gone := batch.Events[i]; gone.Key.Kind != store.SecretKind || gone.Key.Namespace != "brief" || gone.Cause.Revision != at {
			t.Errorf("%+v", gone)
		}
		break
	}
	if _, _, err := lost.Get(s.Ctx, store.Key{Kind: store.SecretKind, Namespace: "default", Name: "s"}); err != nil {
		t.Errorf("the Secret of a Namespace that stays: %v", err)
	}
}
