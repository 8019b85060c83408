// Package rpctest makes the certificates of tests. In: a certificate authority, and who somebody is to be. Out: the
// credentials of such a one, as it would have them of `podwire pki`. It must not sign what the product would not sign.
package rpctest

import (
	"testing"

	"podwire.dev/internal/pki"
	"podwire.dev/internal/rpc"
)

// Authority makes a CA in a directory of the test, with the tokens of the plan, and loads it.
func Authority(t testing.TB, plan pki.Plan) (dir string, ca *pki.Authority) {
	t.Helper()
	dir = t.TempDir()
	if _, err := pki.Init(dir, plan); err != nil {
		t.Fatal(err)
	}
	ca, err := pki.LoadAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, ca
}

// Credentials makes an identity directory that the CA signed, and reads it.
func Credentials(t testing.TB, ca *pki.Authority, id pki.Identity) *rpc.Credentials {
	t.Helper()
	csr, key, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignStandard(csr, id)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := pki.WriteIdentity(dir, ca.CAPEM(), cert, key); err != nil {
		t.Fatal(err)
	}
	creds, err := rpc.LoadCredentials(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return creds
}
