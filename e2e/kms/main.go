// A KMS plugin as Kubernetes' own library (k8s.io/kms) serves it, for tests: the keys are in memory, AES-256-GCM, the newest
// encrypts. SIGHUP makes another one.
package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"k8s.io/kms/pkg/service"
)

type keys struct {
	lock   sync.Mutex
	all    map[string]cipher.AEAD
	newest string
}

func (k *keys) rotate() {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		log.Fatal(err)
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		log.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		log.Fatal(err)
	}
	k.lock.Lock()
	defer k.lock.Unlock()
	k.newest = fmt.Sprintf("key-%d", len(k.all)+1)
	k.all[k.newest] = aead
}

func (k *keys) Status(context.Context) (*service.StatusResponse, error) {
	k.lock.Lock()
	defer k.lock.Unlock()
	return &service.StatusResponse{Version: "v2", Healthz: "ok", KeyID: k.newest}, nil
}

func (k *keys) Encrypt(_ context.Context, uid string, data []byte) (*service.EncryptResponse, error) {
	k.lock.Lock()
	defer k.lock.Unlock()
	aead := k.all[k.newest]
	nonce := make([]byte, aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return &service.EncryptResponse{
		Ciphertext:  aead.Seal(nil, nonce, data, nil),
		KeyID:       k.newest,
		Annotations: map[string][]byte{"nonce.kms.postern.dev": nonce},
	}, nil
}

func (k *keys) Decrypt(_ context.Context, uid string, request *service.DecryptRequest) ([]byte, error) {
	k.lock.Lock()
	defer k.lock.Unlock()
	aead, ok := k.all[request.KeyID]
	if !ok {
		return nil, errors.New("no such key: " + request.KeyID)
	}
	return aead.Open(nil, request.Annotations["nonce.kms.postern.dev"], request.Ciphertext, nil)
}

// kms-plugin SOCKET: prints a line once it listens, and one for each key that it makes.
func main() {
	k := &keys{all: map[string]cipher.AEAD{}}
	k.rotate()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	go func() {
		for range hangup {
			k.rotate()
			fmt.Println(k.newest)
		}
	}()
	server := service.NewGRPCService(os.Args[1], 5*time.Second, k)
	go func() {
		for {
			if _, err := os.Stat(os.Args[1]); err == nil {
				fmt.Println(k.newest)
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	log.Fatal(server.ListenAndServe())
}
